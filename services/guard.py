"""What every request passes before any of it is parsed: token, size, nesting."""

import hmac
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from scene_graph.json_limits import nesting_depth
from services.errors import (
    InvalidInputError,
    SggError,
    TooLargeError,
    UnauthorizedError,
    UnavailableError,
)
from services.problems import problem_response
from services.proof import PROOF_PATH

PUBLIC_PATHS = frozenset({"/healthz", "/readyz", "/metrics", "/v1/targets", PROOF_PATH})
"""Health; what Prometheus reads, which has no business with a run's tokens; and what a client asks
before it sends one."""
MAX_NESTING = 32


class RequestGuard:
    """ASGI middleware. Every path but `PUBLIC_PATHS` asks for a token, so none can be forgotten.

    Paths at or under `admin_paths` ask for the admin token (the data token where there is no admin
    token); all others for the data token, and the admin token serves as well. Bodies are read
    whole, up to the limits, except at or under `streamed_paths`: there the handler reads them.
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
        held_limit_bytes: int | None,
    ) -> None:
        self._app = app
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
            self._check_token(scope)
            streamed = _is_under(scope["path"], self._streamed_paths)
            body = None if streamed else await self._read_body(scope, receive)
        except SggError as error:
            await problem_response(error)(scope, receive, send)
            return
        if streamed:
            await self._app(scope, receive, send)
        if body is None:
            return
        try:
            await self._app(scope, _replay(body, receive), send)
        finally:
            self._held -= len(body)

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

    async def _read_body(self, scope: Scope, receive: Receive) -> bytes | None:
        """The whole body; None when the client went away. The stated length is not trusted."""
        stated = _header(scope, b"content-length")
        num_stated = int(stated[:20]) if stated.isdigit() else 0
        self._check_size(num_stated, self._held + num_stated)
        chunks: list[bytes] = []
        size, more = 0, True
        try:
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return None
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
        """Of one body, and of all bodies together."""
        if size > self._body_limit:
            raise TooLargeError(f"the body is over {self._body_limit} bytes; send less at a time")
        if self._held_limit is not None and held > self._held_limit:
            raise UnavailableError(
                f"more than {self._held_limit} bytes of requests are at work; try again later"
            )


class CheckedRoute(APIRoute):
    """A route whose JSON body is checked for nesting before FastAPI parses it."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler, after the check; routes that read bytes themselves have none."""
        handle = super().get_route_handler()
        if self.body_field is None:
            return handle

        async def checked(request: Request) -> Response:
            check_nesting(await request.body())
            return await handle(request)

        return checked


def check_nesting(body: bytes) -> None:
    """Refuse JSON nested deeper than `MAX_NESTING`, in linear time and without recursion.

    Raises:
        InvalidInputError: It is deeper. Says nothing about bodies that are no JSON.
    """
    if body.count(b"[") + body.count(b"{") <= MAX_NESTING:
        return
    if nesting_depth(body) > MAX_NESTING:
        raise InvalidInputError(f"the JSON is nested deeper than {MAX_NESTING}")


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
