"""What every request passes before any of it is parsed: host, token, size, time, shape."""

import asyncio
import hmac
from collections.abc import Callable, Collection, Coroutine, Sequence
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from scene_graph.json_limits import json_shape
from services.errors import (
    ClientGoneError,
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
from services.http.problems import problem_response
from services.http.proof import PROOF_PATH

PUBLIC_PATHS = frozenset({"/healthz", "/readyz", "/metrics", "/v1/targets", PROOF_PATH})
"""Health; what Prometheus reads, which has no business with a run's tokens; and what a client asks
before it sends one."""
MAX_NESTING = 32
MAX_VALUES = 300_000
"""JSON values in a body, counted by their commas. One of 3 bytes may be a list that takes 100."""
JSON = "application/json"
BODY_S = 60.0
"""From the end of a request's headers to the end of its body."""


class RequestGuard:
    """ASGI middleware. Every path but `PUBLIC_PATHS` asks for a token, so none can be forgotten.

    The Host header is an address, or one of `host_names`: a page in a browser that gives this
    machine's address a name of its own (DNS rebinding) is not served. Paths at or under
    `admin_paths` ask for the admin token (the data token where there is no admin token); all others
    for the data token, and the admin token serves as well. Bodies are read whole, up to the limits,
    except at or under `streamed_paths`: there the handler reads them. Of public paths no body is
    read.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        data_token: str | None,
        admin_token: str | None,
        admin_paths: Sequence[str],
        streamed_paths: Sequence[str],
        body_limit_bytes: int,
        held_limit_bytes: int,
        host_names: Collection[str],
    ) -> None:
        self._app = app
        self._host_names = host_names
        self._admin_tokens = [t for t in (admin_token or data_token,) if t]
        self._data_tokens = [t for t in (data_token, admin_token) if t] if data_token else []
        self._admin_paths = tuple(admin_paths)
        self._streamed_paths = tuple(streamed_paths)
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
            self._check_token(scope)
            streamed = _is_under(scope["path"], self._streamed_paths)
            body = None if streamed else await self._body(scope, receive)
        except SggError as error:
            await problem_response(error)(scope, receive, send)
            return
        try:
            await self._app(scope, receive if body is None else _replay(body, receive), send)
        finally:
            self._held -= len(body or b"")

    def _check_token(self, scope: Scope) -> None:
        path = scope["path"]
        if path in PUBLIC_PATHS:
            return
        admin = _is_under(path, self._admin_paths)
        accepted = self._admin_tokens if admin else self._data_tokens
        if not accepted:
            return
        scheme, _, given = _header(scope, b"authorization").partition(b" ")
        same = [hmac.compare_digest(given.strip(), token.encode()) for token in accepted]
        if scheme.lower() != b"bearer" or not any(same):
            kind = "admin" if admin else "data"
            raise UnauthorizedError(
                f"{path} asks for the {kind} token: send 'Authorization: Bearer <token>'"
            )

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
