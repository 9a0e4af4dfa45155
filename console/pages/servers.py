"""A run's servers and queues, as Redis knows them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

from fastapi import Request, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent

from console.reading.logs import log_tail, logs
from console.reading.servers import RedisReader, RedisView
from console.runs import NamedRun, Run, RunsOfConsole
from console.web import fragment, is_stopping, page_router, render
from services.errors import SettingsError

router = page_router()
_LOOK_EVERY_S = 2.0
_TAIL_BYTES = 4 << 10


@router.get("/runs/{run}/servers")
def servers(request: Request, run: NamedRun) -> Response:
    """The page at once: what Redis says comes by events, for it may be slow or away."""
    tails = [log_tail(run.files, log.name, _TAIL_BYTES) for log in logs(run.files)]
    return render(request, "servers/page.html", run=run, tab="Servers", tails=tails)


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
