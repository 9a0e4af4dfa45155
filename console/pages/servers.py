"""A run's servers and queues, as Redis knows them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

from fastapi import Request, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent

from console.reading.logs import log_tail, logs
from console.reading.servers import RedisReader, RedisView, server_events
from console.runs import NamedRun, Run, Runs, RunsOfConsole
from console.web import copy_rule, fragment, is_stopping, page_router, render
from services.errors import SettingsError

router = page_router()
_LOOK_EVERY_S = 2.0
_TAIL_BYTES = 4 << 10


@router.get("/runs/{run}/servers")
async def servers(request: Request, run: NamedRun, runs: RunsOfConsole) -> Response:
    """The page at once: what Redis says comes by events, for it may be slow or away."""
    values = {
        "view": await _seen(run, runs) if copy_rule(request) else None,
        "changes": False,
        "tails": [log_tail(run.files, log.name, _TAIL_BYTES) for log in logs(run.files)],
        "events": await asyncio.to_thread(server_events, run.files),
    }
    return render(request, "servers/page.html", run=run, tab="Servers", **values)


async def _seen(run: Run, runs: Runs) -> RedisView:
    """What Redis says now."""
    try:
        reader = RedisReader(await asyncio.to_thread(runs.redis, run), run.name)
    except SettingsError as error:
        return RedisView("", error.message)
    async with aclosing(reader):
        return await reader.read()


@router.get("/runs/{run}/servers/events", response_class=EventSourceResponse)
async def events(
    request: Request, run: NamedRun, runs: RunsOfConsole
) -> AsyncIterator[ServerSentEvent]:
    """`servers` with what Redis says, whenever that changes."""
    try:
        reader = RedisReader(await asyncio.to_thread(runs.redis, run), run.name)
    except SettingsError as error:
        yield _event(run, RedisView("", error.message))
        return
    said: RedisView | None = None
    async with aclosing(reader):
        while not is_stopping(request):
            view = await reader.read()
            if view != said:
                yield _event(run, view, changes=runs.changes)
            said = view
            await asyncio.sleep(_LOOK_EVERY_S)


def _event(run: Run, view: RedisView, *, changes: bool = False) -> ServerSentEvent:
    part = fragment("servers/now.html", run=run, view=view, changes=changes)
    return ServerSentEvent(event="servers", raw_data=part)
