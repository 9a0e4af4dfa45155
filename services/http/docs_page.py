"""`GET /docs`: a service's OpenAPI document in Swagger UI, which the service brings along."""

from fastapi import FastAPI, Response
from fastapi.responses import RedirectResponse
from starlette.types import Receive, Scope, Send

from services.http.pages import page

DOCS_PATH = "/docs"


def add_docs(app: FastAPI, *, log_out: bool) -> None:
    """Serve the page, to which `GET /` leads unless the app has a page of its own there.

    Args:
        app: Its title is the page's.
        log_out: Whether one can log out, which takes `services.http.login`.
    """

    @app.get(DOCS_PATH, include_in_schema=False)
    async def docs() -> Response:
        return page("docs.html", heading=app.title, log_out=log_out)

    not_found = app.router.default

    async def lead_there(scope: Scope, receive: Receive, send: Send) -> None:
        """Come last, after every route of the app."""
        at_home = scope["type"] == "http" and (scope["method"], scope["path"]) == ("GET", "/")
        answer = RedirectResponse(DOCS_PATH) if at_home else not_found
        await answer(scope, receive, send)

    app.router.default = lead_there
