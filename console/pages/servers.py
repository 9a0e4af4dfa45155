"""A run's servers and queues, as Redis knows them."""

from fastapi import Request, Response

from console.runs import NamedRun
from console.web import page_router, render

router = page_router()


@router.get("/runs/{run}/servers")
async def servers(request: Request, run: NamedRun) -> Response:
    """Servers, queues and dead letters now."""
    return render(request, "servers.html", run=run, tab="Servers")
