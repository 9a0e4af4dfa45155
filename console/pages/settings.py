"""A run's settings, and its logs."""

import asyncio
from collections.abc import AsyncIterator

from fastapi import Request, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent

from console.reading.logs import log_tail, logs
from console.reading.settings import setting_rows
from console.reading.state import read_config
from console.runs import NamedRun
from console.web import fragment, is_stopping, page_router, render

router = page_router()
_LOOK_EVERY_S = 1.0


@router.get("/runs/{run}/settings")
def settings(request: Request, run: NamedRun) -> Response:
    """Every setting, those that differ from the default first in each table."""
    tree, problem = read_config(run.files)
    return render(
        request,
        "settings/page.html",
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
    return render(
        request, "settings/log.html", run=run, tab="Settings", log=found, logs=logs(run.files)
    )


@router.get("/runs/{run}/logs/{name}/events", response_class=EventSourceResponse)
async def log_events(request: Request, run: NamedRun, name: str) -> AsyncIterator[ServerSentEvent]:
    """`log` with the log's end whenever it has grown."""
    said = -1
    while not is_stopping(request):
        found = await asyncio.to_thread(log_tail, run.files, name)
        if found.num_bytes != said:
            part = fragment("settings/log_lines.html", log=found)
            yield ServerSentEvent(event="log", raw_data=part)
        said = found.num_bytes
        await asyncio.sleep(_LOOK_EVERY_S)
