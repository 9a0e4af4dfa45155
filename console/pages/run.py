"""One run: its health in a sentence, and its curves."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent

from console.reading.charts import figures
from console.reading.health import findings, sentence, tiles
from console.reading.overview import OVERVIEWS
from console.reading.run import READERS, RunReader
from console.runs import NamedRun, Run
from console.web import fragment, is_stopping, page_router, render

router = page_router()
_LOOK_EVERY_S = 1.0


@router.get("/runs/{run}")
def page(request: Request, run: NamedRun) -> Response:
    """The run's first page."""
    reader = READERS.of(run)
    with reader.lock:
        shown = figures(reader.steps, reader.evaluations)
    return render(request, "run.html", run=run, tab="Run", figures=shown, **_health(run, reader))


@router.get("/runs/{run}/curves.json")
def curves(run: NamedRun, since: str = "") -> Response:
    """The points of every curve: all of them, or those after the answer that `since` marks."""
    return JSONResponse(READERS.of(run).points(since))


@router.get("/runs/{run}/events", response_class=EventSourceResponse)
async def events(request: Request, run: NamedRun) -> AsyncIterator[ServerSentEvent]:
    """`health` with the sentence and the numbers; `steps` when the curves have grown."""
    said, drawn = "", ""
    while not is_stopping(request):
        reader = await asyncio.to_thread(READERS.of, run)
        health = await asyncio.to_thread(_health_part, run, reader)
        if health != said:
            yield ServerSentEvent(event="health", raw_data=health)
        if reader.mark != drawn:
            yield ServerSentEvent(event="steps", raw_data=reader.mark)
        said, drawn = health, reader.mark
        await asyncio.sleep(_LOOK_EVERY_S)


def _health_part(run: Run, reader: RunReader) -> str:
    return fragment("run_health.html", **_health(run, reader))


def _health(run: Run, reader: RunReader) -> dict[str, Any]:
    overview = OVERVIEWS.of(run)
    with reader.lock:
        return {
            "overview": overview,
            "sentence": sentence(overview.state, reader.steps),
            "tiles": tiles(reader.steps, reader.evaluations),
            "findings": [] if overview.state.is_over else findings(reader.steps),
            "num_repeated": reader.steps.num_repeated,
        }
