"""The console as an app of its own, and as pages of another one, such as the monitor."""

from pathlib import Path

from fastapi import FastAPI
from starlette.staticfiles import StaticFiles

from console.pages import (
    compare,
    heldout,
    report_files,
    rollouts,
    run,
    runs,
    servers,
    settings,
    try_it,
)
from console.runs import Runs
from console.web import HERE
from services.http.app import create_app
from services.settings import Settings

PAGES = (
    runs,
    compare,
    run,
    rollouts,
    heldout,
    report_files,
    servers,
    settings,
    try_it,
)
BODY_LIMIT_BYTES = 16 << 20


def create_console(folder: Path, *, url: str = "", data_token: str | None = None) -> FastAPI:
    """The console.

    Args:
        folder: Of runs, or one run's.
        url: Where it listens.
        data_token: Asked for on every page; None leaves them open.
    """
    app = create_app(
        title="console",
        readiness=lambda: None,
        body_limit_bytes=BODY_LIMIT_BYTES,
        url=url,
        data_token=data_token,
    )
    add_console(app, folder)
    return app


def add_console(app: FastAPI, folder: Path, own: Settings | None = None) -> None:
    """Serve the console's pages beside an app's own routes, from `/` on.

    Args:
        app: Made by `services.http.app.create_app`.
        folder: Of runs, or one run's.
        own: Settings of the run that the app is a part of.
    """
    app.state.runs = Runs(folder, own)
    for page in PAGES:
        app.include_router(page.router)
    app.mount("/static", StaticFiles(directory=HERE / "static"))
