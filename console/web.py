"""How every page is made: its template, its headers, and what it says when something is wrong.

Example of a page:

    router = page_router()

    @router.get("/runs/{run}/settings")
    def settings(request: Request, run: NamedRun) -> Response:
        return render(request, "settings/page.html", run=run, tab="Settings", …)
"""

import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse
from fastapi.routing import APIRoute
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException

from console.views import FILTERS
from evaluation.report.template import PARTS
from services.errors import NotFoundError, SggError, UnavailableError
from services.http.pages import HEADERS
from services.http.problems import invalid_input, problem_response

logger = logging.getLogger(__name__)

HERE = Path(__file__).parent
TABS = {
    "Run": "",
    "Rollouts": "/rollouts",
    "Held-out": "/heldout",
    "Servers": "/servers",
    "Settings": "/settings",
}
"""A run's pages, by the word in the navigation; the rest of the path after the run's."""

environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader([HERE / "templates", PARTS]),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)
"""Names and texts of a run come from anywhere: every value is escaped."""
environment.filters.update(FILTERS)


@dataclass(frozen=True, slots=True)
class CopyRule:
    """What a copy on disk holds, where pages are made for one: they have no server to ask."""

    groups_of_a_step: int
    """The most, with their pages"""
    at: str
    """When it is made"""


def copy_rule(request: Request) -> CopyRule | None:
    """None where pages are served."""
    rule: CopyRule | None = request.app.state.copied
    return rule


class PageRoute(APIRoute):
    """A route whose answer has `HEADERS`; an error becomes an answer that says what to do."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler, inside of both."""
        handle = super().get_route_handler()

        async def with_headers(request: Request) -> Response:
            try:
                return _with_headers(await handle(request))
            except HTTPException:
                raise
            except Exception as error:  # noqa: BLE001 - the last resort of a page
                return error_answer(request, _told(error))

        return with_headers


def _with_headers(response: Response) -> Response:
    headers = MutableHeaders(raw=response.raw_headers)
    for name, value in HEADERS.items():
        headers.setdefault(name, value)
    return response


def _told(error: Exception) -> SggError:
    """What a page says of an error; one that nobody foresaw is in the log, with its traceback."""
    match error:
        case SggError():
            return error
        case RequestValidationError():
            return invalid_input(error.errors())
        case OSError():  # a file that this process may not read, or that has gone
            return UnavailableError(
                f"{error.filename or 'a file'} cannot be read: {error.strerror or error}. It has "
                "to be a file that the console's user may read: mend it or move it away, then "
                "load this page again."
            )
    logger.error("a page failed", exc_info=error)
    return SggError("This is a mistake of the console; its log has the traceback.")


def page_router() -> APIRouter:
    """A router of pages: they are for people, and no part of a service's OpenAPI document."""
    return APIRouter(route_class=PageRoute, include_in_schema=False)


def render(request: Request, template: str, **values: Any) -> HTMLResponse:
    """A page.

    Args:
        request: Asks for it.
        template: A file of `templates/`. Pages extend `base.html`, pages of a run `run_base.html`,
            which needs `run` and `tab`, a key of `TABS`.
        values: What the template names.
    """
    shared = {"tabs": TABS, "copied": copy_rule(request)}
    return HTMLResponse(fragment(template, **shared, **values))


def fragment(template: str, **values: Any) -> str:
    """A template as text, such as a part of a page that a server-sent event replaces."""
    return environment.get_template(template).render({"copied": None, **values})


def error_answer(request: Request, error: SggError) -> Response:
    """What is wrong, and what to do: a page for a browser, problem details for all others."""
    if not _is_browser(request):
        return _with_headers(problem_response(error))
    page = render(request, "error.html", error=error)
    page.status_code = error.status
    return _with_headers(page)


def _is_browser(request: Request) -> bool:
    return "text/html" in request.headers.get("accept", "")


def add_error_pages(app: FastAPI) -> None:
    """Show a page where a browser asks an app for a path that it does not have."""
    problem: Any = app.exception_handlers[HTTPException]

    async def answer(request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException) and error.status_code == 404 and _is_browser(request):
            missing = NotFoundError(f"this console has no page {request.url.path[:100]!r}")
            return error_answer(request, missing)
        found: Response = await problem(request, error)
        return found

    app.add_exception_handler(HTTPException, answer)


def is_stopping(request: Request) -> bool:
    """Whether the server ends: then a stream of events has to."""
    return bool(request.app.state.is_stopping())
