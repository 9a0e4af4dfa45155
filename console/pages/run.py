"""One run: its health in a sentence, and its curves."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent

from console.reading.charts import figures
from console.reading.curves import NUM_RECENT, Row, numbers
from console.reading.health import findings, sentence, tiles
from console.reading.overview import OVERVIEWS
from console.reading.run import READERS, RunReader
from console.runs import NamedRun, Run, is_run
from console.web import copy_rule, fragment, is_stopping, page_router, render
from services.run_folder import TAIL_BYTES, TableFollower

router = page_router()
_LOOK_EVERY_S = 1.0
_NUM_EVENTS = 30
"""That are listed under the curves."""


@router.get("/runs/{run}")
def page(request: Request, run: NamedRun) -> Response:
    """The run's first page: by the ends of its files, so that a long run is there at once."""
    if copy_rule(request):
        return render(request, "run/page.html", run=run, tab="Run", **_whole(READERS.of(run), run))
    rows, evaluations = (_last_rows(file) for file in (run.files.metrics, run.files.evaluations))
    values = _health(run, rows, evaluations)
    values |= {"figures": figures(_keys(rows), _keys(evaluations)), "doubts": [], "events": []}
    return render(request, "run/page.html", run=run, tab="Run", **values)


@router.get("/runs/{run}/curves.json")
def curves(run: NamedRun, since: str = "") -> Response:
    """The points of every curve: all of them, or those after the answer that `since` marks."""
    return JSONResponse(READERS.of(run).points(since))


@router.get("/runs/{run}/events", response_class=EventSourceResponse)
async def events(request: Request, run: NamedRun) -> AsyncIterator[ServerSentEvent]:
    """`health` with the sentence and the numbers; `steps` when the curves have grown.

    It ends when the run is gone.
    """
    said, drawn = "", ""
    while not is_stopping(request) and is_run(run.path):
        reader = await asyncio.to_thread(READERS.of, run)
        health = await asyncio.to_thread(_health_part, run, reader)
        if health != said:
            yield ServerSentEvent(event="health", raw_data=health)
        if reader.mark != drawn:
            yield ServerSentEvent(event="steps", raw_data=reader.mark)
            happened = fragment("run/events.html", events=_notable(reader))
            yield ServerSentEvent(event="happened", raw_data=happened)
        said, drawn = health, reader.mark
        await asyncio.sleep(_LOOK_EVERY_S)


def _whole(reader: RunReader, run: Run) -> dict[str, Any]:
    """All that the page shows once its events have come."""
    with reader.lock:
        shown = figures(reader.steps.keys, reader.evaluations.keys)
        values = _read_health(run, reader) | {"figures": shown, "events": _notable(reader)}
    return values | {"curves": reader.points()}


def _health_part(run: Run, reader: RunReader) -> str:
    with reader.lock:
        return fragment("run/health.html", **_read_health(run, reader))


def _read_health(run: Run, reader: RunReader) -> dict[str, Any]:
    health = _health(run, [*reader.steps.recent], [*reader.evaluations.recent])
    return health | {"doubts": reader.doubts(is_over=health["overview"].state.is_over)}


def _health(run: Run, rows: list[Row], evaluations: list[Row]) -> dict[str, Any]:
    overview = OVERVIEWS.of(run)
    return {
        "overview": overview,
        "sentence": sentence(overview.state, rows),
        "tiles": tiles(rows, evaluations),
        "findings": [] if overview.state.is_over else findings(rows),
    }


def _notable(reader: RunReader) -> list[dict[str, Any]]:
    """The last events, without those that every step has."""
    return [event for event in reader.events if event["kind"] != "published"][-_NUM_EVENTS:]


def _last_rows(file: Path) -> list[Row]:
    return TableFollower[Row](file, tail_bytes=TAIL_BYTES).read().rows[-NUM_RECENT:]


def _keys(rows: list[Row]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key, _ in numbers(row)))
