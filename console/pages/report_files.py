"""The report's own drawing, served as it is: one code draws graphs in the report and here."""

from fastapi import Response
from fastapi.responses import FileResponse

from console.web import page_router
from evaluation.report.template import PARTS
from services.errors import NotFoundError

router = page_router()
NAMES = ("drawing.css", "browser.css", "drawing.js", "panels.js", "browser.js", "tables.js")


@router.get("/static/report/{name}")
def file(name: str) -> Response:
    """A style sheet or a script."""
    if name not in NAMES:
        raise NotFoundError(f"no file {name!r} of the report is served")
    return FileResponse(PARTS / name)
