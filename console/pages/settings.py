"""A run's settings, and its logs."""

from fastapi import Request, Response

from console.reading.logs import log_tail, logs
from console.reading.settings import setting_rows
from console.reading.state import read_config
from console.runs import NamedRun
from console.web import page_router, render

router = page_router()


@router.get("/runs/{run}/settings")
def settings(request: Request, run: NamedRun) -> Response:
    """Every setting, those that differ from the default first in each table."""
    tree, problem = read_config(run.files)
    return render(
        request,
        "settings.html",
        run=run,
        tab="Settings",
        sections=setting_rows(tree),
        problem=problem,
        logs=logs(run.files),
    )


@router.get("/runs/{run}/logs/{name}")
def log(request: Request, run: NamedRun, name: str) -> Response:
    """The end of a log."""
    found = log_tail(run.files, name)
    return render(request, "log.html", run=run, tab="Settings", log=found, logs=logs(run.files))
