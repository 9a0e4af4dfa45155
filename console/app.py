"""The console as an app of its own, and as pages of another one, such as the monitor."""

from collections.abc import Sequence
from pathlib import Path

from fastapi import FastAPI
from starlette.staticfiles import StaticFiles

from console.pages import (
    compare,
    dead,
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
from console.web import HERE, CopyRule, add_error_pages
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


def create_console(
    folder: Path,
    *,
    url: str = "",
    data_token: str | None = None,
    admin_token: str | None = None,
    copied: CopyRule | None = None,
) -> FastAPI:
    """The console.

    Args:
        folder: Of runs, or one run's.
        url: Where it listens.
        data_token: Asked for on every page; None leaves them open.
        admin_token: Asked for by what changes something; without it, and with a data token, nothing
            can be changed.
        copied: For pages of a copy on disk (`console.export`).
    """
    app = create_app(
        title="console",
        readiness=lambda: None,
        body_limit_bytes=BODY_LIMIT_BYTES,
        url=url,
        data_token=data_token,
        admin_token=admin_token,
        admin_paths=admin_paths(data_token, admin_token),
    )
    add_console(app, folder, data_token=data_token, admin_token=admin_token, copied=copied)
    return app


def admin_paths(data_token: str | None, admin_token: str | None) -> Sequence[str]:
    """`admin_paths` of an app with the console; none where nothing can be changed."""
    return (dead.ADMIN_PATH,) if admin_token or not data_token else ()


def add_console(
    app: FastAPI,
    folder: Path,
    own: Settings | None = None,
    *,
    data_token: str | None = None,
    admin_token: str | None = None,
    copied: CopyRule | None = None,
) -> None:
    """Serve the console's pages beside an app's own routes, from `/` on.

    Args:
        app: Made by `services.http.app.create_app` with these tokens, and `admin_paths` of them.
        folder: Of runs, or one run's.
        own: Settings of the run that the app is a part of.
        data_token: As for `create_console`.
        admin_token: The same.
        copied: The same.
    """
    changes = bool(admin_paths(data_token, admin_token))
    app.state.copied = copied
    app.state.runs = Runs(folder, own, changes=changes)
    if admin_token is None:  # a data token alone is enough: nothing can be changed then
        app.state.weak_tokens = [name for name in app.state.weak_tokens if "ADMIN" not in name]
    add_error_pages(app)
    if changes:
        app.include_router(dead.router)
    for page in PAGES:
        app.include_router(page.router)
    app.mount("/static", StaticFiles(directory=HERE / "static"))
