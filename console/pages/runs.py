"""All runs, and some of them beside each other."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import Request, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent

from console.reading.overview import OVERVIEWS, Overview
from console.runs import Runs, RunsOfConsole, compare_address
from console.views import sparkline
from console.web import fragment, is_stopping, page_router, render

router = page_router()
_LOOK_EVERY_S = 2.0


@router.get("/")
def runs(request: Request, runs: RunsOfConsole) -> Response:
    """All runs, the live ones first, then by their last change."""
    found = _ordered(runs)
    return render(
        request,
        "overview/page.html",
        folder=runs.folder,
        overviews=found,
        others=runs.others(),
        beside=compare_address([overview.run for overview in found]),
        **_shown(),
    )


@router.get("/events", response_class=EventSourceResponse)
async def events(request: Request, runs: RunsOfConsole) -> AsyncIterator[ServerSentEvent]:
    """`run-KEY` with a run's line whenever it changes; `more` when there is another run."""
    said: dict[str, Overview] = {}
    first = True
    while not is_stopping(request):
        for overview in await asyncio.to_thread(_ordered, runs):
            if not first and overview.key not in said:
                yield ServerSentEvent(event="more", raw_data=fragment("overview/more.html"))
            if not first and said.get(overview.key) != overview:
                line = fragment("overview/line.html", overview=overview, **_shown())
                yield ServerSentEvent(event=f"run-{overview.key}", raw_data=line)
            said[overview.key] = overview
        first = False
        await asyncio.sleep(_LOOK_EVERY_S)


def _ordered(runs: Runs) -> list[Overview]:
    found = [OVERVIEWS.of(run) for run in runs.all()]
    return sorted(found, key=lambda o: (o.state.is_over, -o.changed))


def _shown() -> dict[str, Any]:
    return {"sparkline": sparkline, "now": time.time()}
