"""Errors as RFC 9457 problem details: the one mapping from exceptions to HTTP answers, and back.

Example: `{"type": "urn:sgg:TooLargeError", "title": "Over a stated limit.", "status": 413,
"detail": "the body is over 4000000 bytes", "retryable": false}`
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic_core import from_json
from starlette.exceptions import HTTPException

from services.errors import InvalidInputError, Mistake, SggError

MEDIA_TYPE = "application/problem+json"
_TYPE_PREFIX = "urn:sgg:"
_MAX_ERRORS = 20
"""A body can hold a million mistakes; the first ones are enough to find the cause."""
_MAX_TEXT = 500
_NO_ROUTE = (404, 405)


def problem(error: SggError) -> dict[str, Any]:
    """A `Problem` as JSON: the error's class gives type, title, status and `retryable`."""
    body: dict[str, Any] = {
        "type": _TYPE_PREFIX + type(error).__name__,
        "title": (type(error).__doc__ or "").split("\n", 1)[0],
        "status": error.status,
        "detail": error.message,
        "retryable": error.retryable,
    }
    if isinstance(error, InvalidInputError) and error.mistakes:
        body["errors"] = [asdict(mistake) for mistake in error.mistakes]
    return body


def problem_response(error: SggError) -> Response:
    """The HTTP answer for an error."""
    headers = {"Retry-After": "1"} if error.status == 503 else {}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if error.status == 413:
        headers["Connection"] = "close"  # the rest of the body is not read
    return _json_response(problem(error), error.status, headers)


def error_from_problem(status: int, text: str, *, asked: str) -> SggError:
    """The error that a service answered with, for clients.

    Args:
        status: The HTTP answer's, 400 or more.
        text: Its body; need not be a problem (a proxy may have answered).
        asked: What was asked, such as `POST http://localhost/v1/rewards`: the message names it
            where no service of ours has found the error, such as at a route that it does not have.
    """
    try:
        body = from_json(text)
    except ValueError:
        body = None
    answered = f"{asked} answered HTTP {status}"
    found = body if isinstance(body, dict) else {"detail": text[:_MAX_TEXT]}
    kind, detail = str(found.get("type", "")), str(found.get("detail") or "")
    if kind.startswith(_TYPE_PREFIX):
        return _class_of(kind, status)(detail or answered)
    here = "; is it the address of that service?" if status in _NO_ROUTE else ""
    return _class_of(kind, status)(f"{answered}: {detail}{here}" if detail else answered + here)


def invalid_input(
    found: Sequence[Mapping[str, Any]], prefix: Sequence[int | str] = ()
) -> InvalidInputError:
    """What pydantic found wrong, as one error.

    Args:
        found: `ValidationError.errors()`.
        prefix: Where the validated value stands in the request, such as `("body", "rubric")`.
    """
    # Only path and message: the input is never echoed, it may be huge or hold NaN.
    mistakes = [
        Mistake(_path([*prefix, *e["loc"]]), str(e["msg"])[:_MAX_TEXT]) for e in found[:_MAX_ERRORS]
    ]
    count = f"{len(found)} mistakes" if len(found) > 1 else "a mistake"
    first = f"{mistakes[0].path}: {mistakes[0].message}" if mistakes else ""
    return InvalidInputError(f"the request has {count}; {first}", mistakes)


def mistake(path: str, message: str) -> InvalidInputError:
    """The error for one mistake in a request, such as at `body.rubric`."""
    return InvalidInputError(f"{path}: {message}", [Mistake(path, message)])


def add_problem_handlers(app: FastAPI) -> None:
    """Answer every exception of `app` with problem details."""
    app.add_exception_handler(SggError, _on_sgg_error)
    app.add_exception_handler(RequestValidationError, _on_invalid_request)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(Exception, _on_unexpected)


async def _on_sgg_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, SggError)
    return problem_response(error)


async def _on_invalid_request(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return problem_response(invalid_input(error.errors()))


async def _on_http_exception(_: Request, error: Exception) -> Response:
    """Unknown route, wrong method, or a body that cannot be decoded: raised by the framework."""
    assert isinstance(error, HTTPException)
    body = {
        "type": "about:blank",
        "title": str(error.detail),
        "status": error.status_code,
        "detail": str(error.detail),
        "retryable": False,
    }
    return _json_response(body, error.status_code, dict(error.headers or {}))


async def _on_unexpected(_: Request, __: Exception) -> Response:
    """The server logs the traceback; the caller learns only that it is ours to fix."""
    return problem_response(SggError("internal error; the service's log has the traceback"))


def _json_response(body: dict[str, Any], status: int, headers: dict[str, str]) -> Response:
    # ASCII only: a lone surrogate from a request cannot be written as UTF-8.
    text = json.dumps(body, allow_nan=False, ensure_ascii=True)
    return Response(text, status_code=status, media_type=MEDIA_TYPE, headers=headers)


def _path(location: Sequence[int | str]) -> str:
    return ".".join(map(str, location))[:_MAX_TEXT]


def _class_of(type_uri: str, status: int) -> type[SggError]:
    """By the problem's type, else the broadest class with this status."""
    classes = _all_errors(SggError)
    for cls in classes:
        if type_uri == _TYPE_PREFIX + cls.__name__:
            return cls
    by_status = {cls.status: cls for cls in reversed(classes)}
    by_status |= {400: InvalidInputError, 403: by_status[401], 429: by_status[503]}
    # A proxy before a service that is away or slow, and an address of something else.
    by_status |= {502: by_status[503], 408: by_status[504], 405: by_status[404]}
    return by_status.get(status, InvalidInputError if status < 500 else SggError)


def _all_errors(cls: type[SggError]) -> list[type[SggError]]:
    """Breadth first, so that a base class comes before its subclasses."""
    level, found = [cls], []
    while level:
        found += level
        level = [sub for base in level for sub in base.__subclasses__()]
    return found
