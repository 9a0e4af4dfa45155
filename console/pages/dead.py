"""What the console can change: a dead group is forgotten."""

from contextlib import aclosing
from typing import Annotated

from fastapi import Path, Response
from fastapi.responses import HTMLResponse

from console.runs import NamedRun, RunsOfConsole
from console.web import page_router
from services.errors import NotFoundError
from services.redis.client import connect
from services.redis.keys import RunKeys
from services.redis.queue import RedisQueue

ADMIN_PATH = "/admin"
"""Above all that changes something: it asks for the admin token."""
router = page_router()
EntryId = Annotated[str, Path(pattern=r"^\d{1,20}-\d{1,20}$")]


@router.post(ADMIN_PATH + "/runs/{run}/dead/{entry_id}/drop")
async def drop(run: NamedRun, runs: RunsOfConsole, entry_id: EntryId) -> Response:
    """Forget it, as `sgg-rl dead drop` does; nothing takes its row's place."""
    async with aclosing(connect(runs.redis(run))) as redis:
        if not await RedisQueue(redis, RunKeys(run.name)).drop(entry_id):
            raise NotFoundError(f"no dead group {entry_id}: somebody has dropped it")
    return HTMLResponse("")
