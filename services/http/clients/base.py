"""Requests to the services: tokens, deadlines, retries, and problems turned back into errors."""

import asyncio
import functools
import random
import ssl
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Self, TypeVar

import httpx
from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticSerializationError

from services.errors import (
    EngineError,
    InvalidInputError,
    SggError,
    UnavailableError,
    WaitTimeoutError,
)
from services.http.clients.file_upload import FileUpload
from services.http.problems import error_from_problem
from services.http.raw_body import LINE_SILENCE_S
from services.schemas.versions import parse
from services.settings.secrets import checked_secret
from services.telemetry import trace_headers
from services.waiting import growing_pauses, in_thread

Answer = TypeVar("Answer", bound=BaseModel)

_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 5.0
_UPLOAD_ATTEMPTS = 2
_UNAVAILABLE = 503
_LAST_PORT = 65535


class ServiceClient:
    """One service at one address.

    Connection failures and retryable problems are tried again until `timeout_s` is over, with
    growing pauses that are at least what the service's `Retry-After` asks for: every route of this
    system may be sent twice. Other errors are raised at once. Requests carry the `traceparent` of
    the current OpenTelemetry span, where there is one.
    """

    def __init__(
        self, url: str, *, token: str | None = None, timeout_s: float = 60.0, pulse: bool = False
    ) -> None:
        """Connects on first use.

        Args:
            url: `http://host:port` of the service.
            token: Sent as `Authorization: Bearer`.
            timeout_s: Longest wait for one answer, all attempts together.
            pulse: Have the service say that it is at work (`services.http.raw_body.PULSE`): a dead
                line is found long before an answer that may take minutes is due.

        Raises:
            InvalidInputError: As `check_access`.
        """
        check_access(url, token, timeout_s)
        self.url = url.rstrip("/")
        self._timeout_s = timeout_s
        self._token = token
        self._pulse = pulse
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connections: httpx.AsyncClient | None = None
        self._is_closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End the connections; the client asks nothing any more."""
        self._is_closed = True
        if self._connections is not None and self._loop is asyncio.get_running_loop():
            await self._connections.aclose()
        self._connections = None

    @property
    def _http(self) -> httpx.AsyncClient:
        """Connections of the event loop that runs: those of another are dead, as after a fork."""
        if self._is_closed:
            raise InvalidInputError(f"this client of {self.url} is closed: make another one")
        loop = asyncio.get_running_loop()
        if self._connections is None or self._loop is not loop:
            self._loop, self._connections = loop, _connections(self.url, self._pulse)
        return self._connections

    async def get(self, path: str, answer: type[Answer], *, retry: bool = True) -> Answer:
        """`GET path`; raises as `post` does."""
        return await self._call("GET", path, None, answer, retry)

    async def post(
        self, path: str, body: BaseModel, answer: type[Answer], *, retry: bool = True
    ) -> Answer:
        """`POST path`.

        Args:
            path: Such as `/v1/rewards`.
            body: Sent as JSON.
            answer: The message that comes back.
            retry: False where the caller would rather ask another server.

        Raises:
            InvalidInputError: The body is no message, or the client is closed.
            UnavailableError: Not reachable until the deadline.
            WaitTimeoutError: Reached, but no answer until the deadline.
            EngineError: The answer is not an `answer`.
            SggError: The subclass that the service raised, with its detail.
        """
        if not isinstance(body, BaseModel):
            raise InvalidInputError(f"{path} takes a message of services/schemas, and not {body!r}")
        return await self._call("POST", path, body, answer, retry)

    async def put_file(self, path: str, file: Path, answer: type[Answer]) -> Answer:
        """`PUT path` with a file of any size as the body, streamed.

        `timeout_s` is the longest wait here for a service that takes no more bytes, or has them
        all, and says that it is at work. A connection that is lost or dead is tried once more, from
        the start.

        Raises:
            UnavailableError: Not reachable, or lost twice.
            WaitTimeoutError: It takes no more, or does not answer.
            EngineError: The answer is not an `answer`.
            SggError: The subclass that the service raised, with its detail.
        """
        where = f"PUT {self.url}{path}"
        now = asyncio.get_running_loop().time
        lost, give_up = 0, now() + self._timeout_s
        while True:
            try:
                headers = await self._headers()
                with FileUpload(self.url, file, self._timeout_s) as upload:
                    response = await in_thread(partial(upload.send, path, headers), upload.stop)
            except TimeoutError as error:
                raise WaitTimeoutError(f"{where}: silence of {self._timeout_s:g} s") from error
            except (httpx.TransportError, OSError, HTTPException) as error:
                lost += 1
                if lost == _UPLOAD_ATTEMPTS:
                    raise _lost(where, error) from error
                continue
            # The service may still be busy with the upload that was lost.
            if not (lost and response.status_code == _UNAVAILABLE and now() < give_up):
                break
            await asyncio.sleep(max(_retry_after_s(response), _FIRST_PAUSE_S))
        if response.is_error:
            raise error_from_problem(response.status_code, response.text, asked=where)
        return _read(response.content, answer, where)

    async def _call(
        self, method: str, path: str, body: BaseModel | None, answer: type[Answer], retry: bool
    ) -> Answer:
        where = f"{method} {self.url}{path}"
        # In a thread: a step's references, or a picture, are megabytes.
        try:
            content = await asyncio.to_thread(body.model_dump_json) if body is not None else ""
        except PydanticSerializationError as error:
            raise InvalidInputError(
                f"{where} cannot send a text with half a character (a lone surrogate): replace it, "
                'as text.encode("utf-8", "replace").decode() does'
            ) from error
        failures: list[SggError] = []
        try:
            async with asyncio.timeout(self._timeout_s):
                text = await self._until_answered(method, path, content.encode(), retry, failures)
        except TimeoutError as error:
            if failures:
                raise failures[-1] from error
            raise WaitTimeoutError(f"{where} gave no answer in {self._timeout_s:g} s") from error
        return _read(text, answer, where)

    async def _until_answered(
        self, method: str, path: str, content: bytes, retry: bool, failures: list[SggError]
    ) -> bytes:
        """The body of the first good answer; `failures` gets each error on the way."""
        pauses = growing_pauses(_FIRST_PAUSE_S, _LONGEST_PAUSE_S)
        while True:
            asked_s = 0.0
            try:
                response = await self._once(method, path, content)
                if not response.is_error:
                    return response.content
                asked_s = _retry_after_s(response)
                asked = f"{method} {self.url}{path}"
                raise error_from_problem(response.status_code, response.text, asked=asked)
            except SggError as error:
                if not (retry and error.retryable):
                    raise
                failures.append(error)
            # Half of it at random, so that many clients do not come back at the same moment.
            await asyncio.sleep(max(asked_s, next(pauses) * (0.5 + random.random() / 2)))

    async def _once(self, method: str, path: str, content: bytes) -> httpx.Response:
        of_body = {"Content-Type": "application/json"} if content else {}
        if content and self._pulse:
            of_body["Expect"] = "100-continue"
        try:
            headers = await self._headers() | of_body
            return await self._http.request(method, path, content=content, headers=headers)
        except httpx.TransportError as error:
            raise _lost(f"{method} {self.url}{path}", error) from error

    async def _headers(self) -> dict[str, str]:
        """Headers of any request, asked for right before it is sent."""
        bearer = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        return trace_headers() | bearer


def check_access(url: str, token: str | None, timeout_s: float) -> None:
    """Refuse what no request could be sent with.

    Raises:
        InvalidInputError: The url has no `http://` or `https://`, no host, an impossible port, or
            a query or fragment; the token does not fit into a header, or there is no time for an
            answer.
    """
    try:
        address = httpx.URL(url)
    except (httpx.InvalidURL, TypeError):
        address = httpx.URL()
    has_place = address.scheme in ("http", "https") and address.host
    has_port = address.port is None or 0 < address.port <= _LAST_PORT
    if not (has_place and has_port) or set(url) & set("?#"):
        raise InvalidInputError(f"{url} is no address of a service: write http://host:port")
    if not isinstance(token, str | None):
        raise InvalidInputError(f"a token is a text, no {type(token).__name__}")
    if token is not None:
        checked_secret(token, "the token")
    if not isinstance(timeout_s, int | float) or not timeout_s > 0:
        raise InvalidInputError(f"timeout_s is a number of seconds over 0, and not {timeout_s!r}")


def _connections(url: str, pulse: bool) -> httpx.AsyncClient:
    # trust_env off: a proxy meant for the internet must not see a cluster's requests.
    # httpx counts each silence anew; the deadline of the whole is `_call`'s.
    # No limit of connections: callers bound what they have in flight.
    return httpx.AsyncClient(
        base_url=url,
        timeout=LINE_SILENCE_S if pulse else None,
        limits=httpx.Limits(),
        trust_env=False,
        verify=_tls(),
    )


@functools.cache
def _tls() -> ssl.SSLContext:
    """One for all clients: reading the certificates takes 20 ms."""
    return httpx.create_ssl_context(trust_env=False)


def _lost(where: str, error: Exception) -> UnavailableError:
    if isinstance(error, httpx.TimeoutException):
        return UnavailableError(f"{where}: no word for {LINE_SILENCE_S:g} s: the line is dead")
    return UnavailableError(f"{where} failed on the way: {str(error) or type(error).__name__}")


def _read(text: bytes, answer: type[Answer], where: str) -> Answer:
    try:
        return parse(answer, text)
    except ValidationError as error:
        wrong = error.errors()[0]["msg"]
        raise EngineError(f"{where} answered no {answer.__name__}: {wrong}") from error


def _retry_after_s(response: httpx.Response) -> float:
    """Seconds that the service asks to wait; 0 where it says nothing, or a date."""
    asked = response.headers.get("Retry-After", "")
    return float(asked[:6]) if asked.isascii() and asked.isdigit() else 0.0
