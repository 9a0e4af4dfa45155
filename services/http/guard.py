"""What every request passes before any of it is parsed: host, origin, token, size, time, shape."""

import asyncio
import hmac
import time
from collections.abc import Callable, Collection, Coroutine, Sequence
from typing import Any
from urllib.parse import quote

from fastapi import Request, Response
from fastapi.responses import RedirectResponse
from fastapi.routing import APIRoute
from starlette.requests import cookie_parser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from scene_graph.json_limits import json_shape
from services.errors import (
    ClientGoneError,
    CrossOriginError,
    InvalidInputError,
    MediaTypeError,
    MisdirectedError,
    SggError,
    SlowRequestError,
    TooLargeError,
    UnauthorizedError,
    UnavailableError,
)
from services.host.addresses import ip_address
from services.http.pages import FILES_PATH
from services.http.problems import problem_response
from services.http.proof import PROOF_PATH, cookie_name, is_logged_in

PUBLIC_PATHS = frozenset({"/healthz", "/readyz", "/metrics", "/v1/targets", PROOF_PATH})
"""Health; what Prometheus reads, which has no business with a run's tokens; and what a client asks
before it sends one."""
LOGIN_PATH, LOGOUT_PATH = "/login", "/logout"
_BEFORE_LOGIN = (LOGIN_PATH, LOGOUT_PATH, FILES_PATH)
"""What a browser needs that has no cookie yet; bodies go unread to the handlers."""
MAX_NESTING = 32
MAX_VALUES = 300_000
"""JSON values in a body, counted by their commas. One of 3 bytes may be a list that takes 100."""
JSON = "application/json"
BODY_S = 60.0
"""From the end of a request's headers to the end of its body."""


class Tokens:
    """Who may ask for what: by a token in the header, or by the cookie that a login left.

    Example: `Tokens(data="d", admin="a", admin_paths=("/v1/weights",)).check(scope)`

    Paths at or under `admin_paths` ask for the admin token (the data token where there is no admin
    token); all others but `PUBLIC_PATHS` for the data token, and the admin token serves as well.
    None leaves them open.
    """

    def __init__(self, *, data: str | None, admin: str | None, admin_paths: Sequence[str]) -> None:
        self._admin = [t for t in (admin or data,) if t]
        self._data = [t for t in (data, admin) if t] if data else []
        self._admin_paths = tuple(admin_paths)

    @property
    def are_needed(self) -> bool:
        """Whether any path asks for one."""
        return bool(self._admin)

    @property
    def cookie_names(self) -> list[str]:
        """The cookies of all logins."""
        return [cookie_name(token) for token in {*self._data, *self._admin}]

    def known(self, given: str) -> str | None:
        """The token that a person gives, or None where it is none of this service."""
        same = [t for t in (*self._data, *self._admin) if _is(given.encode(), t)]
        return same[0] if same else None

    def check(self, scope: Scope) -> None:
        """See that a request may ask for its path.

        Raises:
            UnauthorizedError: It shows no token, or not the right one.
        """
        path = scope["path"]
        if path in PUBLIC_PATHS or _is_under(path, _BEFORE_LOGIN):
            return
        admin = _is_under(path, self._admin_paths)
        accepted = self._admin if admin else self._data
        if not accepted or _shows_token(scope, accepted) or _shows_cookie(scope, accepted):
            return
        kind = "admin" if admin else "data"
        raise UnauthorizedError(
            f"{path} asks for the {kind} token: send 'Authorization: Bearer <token>'"
        )


class RequestGuard:
    """ASGI middleware. Every path but `PUBLIC_PATHS` asks for a token, so none can be forgotten.

    The Host header is an address, or one of `host_names`: a page in a browser that gives this
    machine's address a name of its own (DNS rebinding) is not served. A page of another origin can
    change nothing. A browser without a token is led to the login. Bodies are read whole, up to the
    limits, except at or under `streamed_paths`: there the handler reads them. Of public paths no
    body is read.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        tokens: Tokens,
        streamed_paths: Sequence[str],
        body_limit_bytes: int,
        held_limit_bytes: int,
        host_names: Collection[str],
    ) -> None:
        self._app = app
        self._host_names = host_names
        self._tokens = tokens
        self._streamed_paths = (*streamed_paths, *_BEFORE_LOGIN)
        self._body_limit = body_limit_bytes
        self._held_limit = held_limit_bytes
        self._held = 0
        """Bytes of all bodies that are being read, wait or are worked on."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse with problem details, or pass on with the whole body at hand."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            check_host(_header(scope, b"host"), self._host_names)
            check_origin(scope)
            self._tokens.check(scope)
            streamed = _is_under(scope["path"], self._streamed_paths)
            body = None if streamed else await self._body(scope, receive)
        except SggError as error:
            await _refusal(scope, error)(scope, receive, send)
            return
        try:
            await self._app(scope, receive if body is None else _replay(body, receive), send)
        finally:
            self._held -= len(body or b"")

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        """The whole body. The stated length is not trusted."""
        if scope["path"] in PUBLIC_PATHS:
            return b""
        stated = _header(scope, b"content-length")
        num_stated = int(stated[:20]) if stated.isdigit() else 0
        self._check_size(num_stated, self._held + num_stated)
        try:
            async with asyncio.timeout(BODY_S):
                return await self._read(receive)
        except TimeoutError as error:
            raise SlowRequestError(
                f"the body did not come within {BODY_S:g} s; send less at a time"
            ) from error

    async def _read(self, receive: Receive) -> bytes:
        chunks: list[bytes] = []
        size, more = 0, True
        try:
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGoneError("the client left before its request was whole")
                chunks.append(message.get("body", b""))
                size += len(chunks[-1])
                self._held += len(chunks[-1])
                self._check_size(size, self._held)
                more = message.get("more_body", False)
        finally:
            if more:  # it is not passed on
                self._held -= size
        return b"".join(chunks)

    def _check_size(self, size: int, held: int) -> None:
        """See that one body is not too large, nor all bodies together."""
        if size > self._body_limit:
            raise TooLargeError(f"the body is over {self._body_limit} bytes; send less at a time")
        if held > self._held_limit:
            raise UnavailableError(
                f"more than {self._held_limit} bytes of requests are at work; try again later"
            )


class CheckedRoute(APIRoute):
    """A route whose body is checked before FastAPI parses it."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler, after the check; routes that read bytes themselves have none."""
        handle = super().get_route_handler()
        if self.body_field is None:
            return handle

        async def checked(request: Request) -> Response:
            check_media_type(request)
            check_json(await request.body())
            return await handle(request)

        return checked


def check_host(host: bytes, names: Collection[str]) -> None:
    """Refuse a request that was meant for another name than this service's.

    Args:
        host: The Host header; a client of HTTP/1.0 may send none.
        names: The service's names, in lower case, beside `localhost` and any address.

    Raises:
        MisdirectedError: It is another name.
    """
    name = _host_name(host.decode("latin-1").lower())
    if name in ("", "localhost") or name in names or ip_address(name):
        return
    raise MisdirectedError(
        f"this service is not called {name[:100]!r}: use its address, or the name in its URL's "
        "setting"
    )


def check_origin(scope: Scope) -> None:
    """Refuse what a page of another origin sends: the browser adds its rights, such as loopback's.

    Raises:
        CrossOriginError: It is such a page, and the request is no GET or HEAD.
    """
    if _changes(scope) and is_same_origin(scope) is False:
        raise CrossOriginError("a page of another origin cannot ask for this: send it without one")


def is_same_origin(scope: Scope) -> bool | None:
    """Whether a browser sends it for this service's own page, or for what a person typed.

    None where neither `Sec-Fetch-Site` nor `Origin` says so: then it is mostly no browser. Another
    port of this host is another origin.
    """
    site, origin = _header(scope, b"sec-fetch-site"), _header(scope, b"origin")
    if site:
        return site in (b"same-origin", b"none")
    if origin:
        return origin.partition(b"://")[2].lower() == _header(scope, b"host").lower()
    return None


def media_type(request: Request) -> str:
    """The type of a body, such as `application/json`; empty where nothing says it."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def check_media_type(request: Request) -> None:
    """See that a body says it is JSON: a browser sends other types without asking first.

    Raises:
        MediaTypeError: It says something else, or nothing.
    """
    if media_type(request) != JSON:
        raise MediaTypeError("the body has to be JSON: send Content-Type: application/json")


def check_json(body: bytes, max_values: int = MAX_VALUES) -> None:
    """Refuse JSON that is costly to build, in linear time and without recursion.

    Raises:
        TooLargeError: It has more values than `max_values`.
        InvalidInputError: It is nested deeper than `MAX_NESTING`. Says nothing about bodies that
            are no JSON.
    """
    brackets = body.count(b"[") + body.count(b"{")
    if brackets <= MAX_NESTING and body.count(b",") <= max_values:
        return
    shape = json_shape(body)
    if shape.num_commas > max_values:
        raise TooLargeError(f"the JSON has over {max_values} values; send less at a time")
    if shape.nesting > MAX_NESTING:
        raise InvalidInputError(f"the JSON is nested deeper than {MAX_NESTING}")


def _changes(scope: Scope) -> bool:
    return scope["method"] not in ("GET", "HEAD")


def _is(given: bytes, token: str) -> bool:
    return hmac.compare_digest(given, token.encode())


def _shows_token(scope: Scope, accepted: Sequence[str]) -> bool:
    scheme, _, given = _header(scope, b"authorization").partition(b" ")
    same = [_is(given.strip(), token) for token in accepted]
    return scheme.lower() == b"bearer" and any(same)


def _shows_cookie(scope: Scope, accepted: Sequence[str]) -> bool:
    """A cookie alone changes nothing: the request has to come from a page of this service.

    Browsers send cookies to all ports of a host. So another port's page may link here, and no more.
    """
    cookies = cookie_parser(_header(scope, b"cookie").decode("latin-1"))
    own = is_same_origin(scope)
    linked = _header(scope, b"sec-fetch-mode") == b"navigate"
    if not cookies or not (own if _changes(scope) else own is not False or linked):
        return False
    return any(is_logged_in(cookies, token, time.time()) for token in accepted)


def _refusal(scope: Scope, error: SggError) -> Response:
    """Problem details; a person in a browser is asked for a token."""
    wants_page = scope["method"] == "GET" and b"text/html" in _header(scope, b"accept")
    if not (wants_page and isinstance(error, UnauthorizedError)):
        return problem_response(error)
    query = b"?" + scope["query_string"] if scope["query_string"] else b""
    place = quote(quote(scope["path"]).encode() + query, safe="")
    return RedirectResponse(f"{LOGIN_PATH}?next={place}", status_code=303)


def _host_name(host: str) -> str:
    """Without its port; of an IPv6 address without its brackets too."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _is_under(path: str, prefixes: Sequence[str]) -> bool:
    return any(path == p or path.startswith(p.rstrip("/") + "/") for p in prefixes)


def _header(scope: Scope, name: bytes) -> bytes:
    return next((bytes(value) for key, value in scope["headers"] if key == name), b"")


def _replay(body: bytes, receive: Receive) -> Receive:
    """Hand the body over once; then whatever the server says, such as a disconnect."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return pending.pop() if pending else await receive()

    return replay
