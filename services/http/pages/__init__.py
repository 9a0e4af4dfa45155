"""Pages that services show to people: from this machine alone, and without a script in the page."""

from pathlib import Path
from typing import Any

import jinja2
from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

FOLDER = Path(__file__).parent
FILES_PATH = "/pages"
"""Where scripts and styles are, for everybody: they hold nothing of a run."""
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; object-src 'none'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""Nothing is loaded from elsewhere, no script runs but those in files, and no page frames this. By
`no-referrer` a form would come from the origin `null`, which the guard refuses."""

_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(FOLDER), autoescape=True, undefined=jinja2.StrictUndefined
)


def page(template: str, *, status: int = 200, **values: Any) -> HTMLResponse:
    """A page of this folder, with `HEADERS`; values are escaped."""
    text = _TEMPLATES.get_template(template).render(values)
    return HTMLResponse(text, status_code=status, headers=HEADERS)


def add_files(app: FastAPI) -> None:
    """Serve what the pages load."""
    app.mount(FILES_PATH, StaticFiles(directory=FOLDER))
