"""Bodies that a thread reads from their connection, and files that the kernel sends."""

import asyncio
import hashlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import Request
from pydantic import BaseModel

from services.errors import (
    InvalidInputError,
    NotFoundError,
    TooLargeError,
    UnavailableError,
    WaitTimeoutError,
)
from services.host.ports import free_port
from services.http.app import create_app
from services.http.clients.base import ServiceClient
from services.http.raw_body import EXTENSION, RawBody
from services.waiting import in_thread
from tests.chaos.proxy import Proxy
from tests.live_servers import served
from tests.processes import wait_for

SILENCE_S = 0.5
BIG = 30_000_000
"""More than the kernel's buffers of a connection take."""


class Got(BaseModel):
    num_bytes: int
    sha256: str


class Service:
    """Takes files at `/files`; `?limit` is refused while it comes."""

    def __init__(self) -> None:
        self.url = f"http://127.0.0.1:{free_port()}"
        self.num_open = 0
        self.app = create_app(
            title="test",
            readiness=lambda: None,
            body_limit_bytes=1000,
            streamed_paths=("/files",),
        )
        self.app.put("/files")(self.take)
        self.app.post("/work")(self.work)

    async def work(self, request: Request, seconds: float) -> Got:
        await request.body()
        self.num_open += 1
        await asyncio.sleep(seconds)
        self.num_open -= 1
        return got(b"")

    async def take(
        self,
        request: Request,
        limit: int = 10**12,
        most: int = 10**12,
        stall_s: float = 0.0,
    ) -> Got:
        body = RawBody(request.scope, SILENCE_S)
        if body.num_bytes > most:
            raise TooLargeError("that many are not even begun")

        def read() -> Got:
            size, digest, buffer = 0, hashlib.sha256(), memoryview(bytearray(1_000_000))
            time.sleep(stall_s)
            while part := body.readinto(buffer):
                size += part
                digest.update(buffer[:part])
                if size > limit:
                    raise InvalidInputError("these are no good")
            return Got(num_bytes=size, sha256=digest.hexdigest())

        self.num_open += 1
        try:
            with body:
                return await in_thread(read, body.stop)
        finally:
            self.num_open -= 1

    def connect(self, head: str, *, method: str = "PUT") -> socket.socket:
        """A connection that has sent the head of a request."""
        client = socket.create_connection(("127.0.0.1", int(self.url.rpartition(":")[2])), 10)
        client.sendall(f"{method} /files HTTP/1.1\r\nHost: localhost\r\n{head}\r\n\r\n".encode())
        return client


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    service = Service()
    with served(service.app, service.url):
        yield service


@pytest.fixture
def big(tmp_path: Path) -> Path:
    file = tmp_path / "big"
    file.write_bytes(os.urandom(1000) * (BIG // 1000) + b"end")
    return file


def got(content: bytes) -> Got:
    return Got(num_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


def answer_of(client: socket.socket) -> bytes:
    """All that comes until the service ends the connection."""
    found = b""
    while part := client.recv(100_000):
        found += part
    return found


@pytest.mark.parametrize("num_bytes", [0, 1, 100_000, BIG])
async def test_a_file_arrives_as_it_is(service: Service, tmp_path: Path, num_bytes: int) -> None:
    content = os.urandom(num_bytes)
    (tmp_path / "file").write_bytes(content)
    async with ServiceClient(service.url) as client:
        assert await client.put_file("/files", tmp_path / "file", Got) == got(content)


def test_a_body_that_comes_bit_by_bit_and_an_answer_that_ends_the_connection(
    service: Service,
) -> None:
    """What comes with the head has gone through the parser; what comes later has not."""
    with service.connect("Content-Length: 11\r\nExpect: 100-continue") as client:
        assert client.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        for part in (b"hello", b" ", b"world"):
            client.sendall(part)
        answer = answer_of(client)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"connection: close" in answer
    assert got(b"hello world").sha256.encode() in answer


def test_what_is_all_there_with_the_head(service: Service) -> None:
    with service.connect("Content-Length: 5\r\n\r\nhello") as client:
        assert got(b"hello").sha256.encode() in answer_of(client)


def test_a_body_without_a_stated_length(service: Service) -> None:
    with service.connect("Transfer-Encoding: chunked") as client:
        client.sendall(b"5\r\nhello\r\n0\r\n\r\n")
        answer = client.recv(10_000)
    assert answer.startswith(b"HTTP/1.1 422 ")
    assert b"send Content-Length" in answer


def test_a_client_that_falls_silent(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection ends a while after the answer: this client reads to its end."""
    monkeypatch.setattr("services.http.raw_body._LINGER_S", 1.0)
    with service.connect("Content-Length: 500000") as client:
        client.sendall(b"x" * 1000)
        answer = answer_of(client)
    assert answer.startswith(b"HTTP/1.1 504 ")
    assert b"silent for 0.5 s" in answer


def test_a_client_that_leaves(service: Service) -> None:
    with service.connect("Content-Length: 500000") as client:
        client.sendall(b"x" * 1000)
        wait_for("the handler", lambda: service.num_open == 1)
    wait_for("the handler's end", lambda: service.num_open == 0)


@pytest.mark.parametrize(
    ("query", "error"),
    [("?limit=2000000", InvalidInputError), ("?most=1000", TooLargeError)],
)
async def test_a_refusal_is_heard_while_the_file_is_still_being_sent(
    service: Service, big: Path, query: str, error: type[Exception]
) -> None:
    async with ServiceClient(service.url) as client:
        with pytest.raises(error, match=r"no good|not even begun"):
            await client.put_file(f"/files{query}", big, Got)
        assert (await client.put_file("/files", big, Got)).num_bytes == BIG + 3


async def test_a_service_that_takes_nothing_is_given_up(big: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        async with ServiceClient(url, timeout_s=0.5) as client:
            with pytest.raises(WaitTimeoutError, match=r"silence of 0\.5 s"):
                await client.put_file("/files", big, Got)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that takes a line for dead after 1.5 s without a word."""
    monkeypatch.setattr("services.http.protocol.PULSE_S", 0.1)
    monkeypatch.setattr("services.http.clients.file_upload._LOOK_S", 0.1)
    for module in ("file_upload", "base"):
        monkeypatch.setattr(f"services.http.clients.{module}.LINE_SILENCE_S", 1.5)


@pytest.fixture
def line(service: Service) -> Iterator[Proxy]:
    with Proxy(free_port(), int(service.url.rpartition(":")[2])) as line:
        yield line


@pytest.mark.usefixtures("impatient")
async def test_a_file_goes_again_where_its_line_dies_without_a_word(
    service: Service, big: Path, line: Proxy
) -> None:
    line.line = "slow"
    async with ServiceClient(f"http://127.0.0.1:{line.port}", timeout_s=600) as client:
        sending = asyncio.create_task(client.put_file("/files", big, Got))
        await asyncio.to_thread(wait_for, "the handler", lambda: service.num_open == 1)
        line.half_open()
        line.line = "good"
        async with asyncio.timeout(60):
            assert (await sending).num_bytes == BIG + 3
    await asyncio.to_thread(wait_for, "the handlers' ends", lambda: service.num_open == 0)


@pytest.mark.usefixtures("impatient")
async def test_a_service_that_stalls_says_that_it_is_there(service: Service, big: Path) -> None:
    """It takes nothing for longer than a line may be silent, as where its disk is busy."""
    async with ServiceClient(service.url, timeout_s=600, pulse=True) as client:
        assert (await client.put_file("/files?stall_s=3", big, Got)).num_bytes == BIG + 3
        assert await client.post("/work?seconds=3", Got(num_bytes=0, sha256=""), Got) == got(b"")


@pytest.mark.usefixtures("impatient")
async def test_no_answer_is_waited_for_on_a_dead_line(service: Service, line: Proxy) -> None:
    url = f"http://127.0.0.1:{line.port}"
    async with ServiceClient(url, timeout_s=600, pulse=True) as client:
        body = Got(num_bytes=0, sha256="")
        asking = asyncio.create_task(client.post("/work?seconds=2", body, Got, retry=False))
        await asyncio.to_thread(wait_for, "the handler", lambda: service.num_open == 1)
        line.half_open()
        with pytest.raises(UnavailableError, match="the line is dead"):
            await asking
    await asyncio.to_thread(wait_for, "the handler's end", lambda: service.num_open == 0)


async def test_sending_ends_when_its_task_does(big: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        async with ServiceClient(url, timeout_s=600) as client:
            sending = asyncio.create_task(client.put_file("/files", big, Got))
            connection, _ = await asyncio.to_thread(silent.accept)
            with connection:
                await asyncio.to_thread(connection.recv, 1000)
                sending.cancel()
                async with asyncio.timeout(10):
                    with pytest.raises(asyncio.CancelledError):
                        await sending


async def test_what_cannot_be_sent(service: Service, big: Path, tmp_path: Path) -> None:
    async with ServiceClient(service.url) as client:
        with pytest.raises(NotFoundError, match="nothing to send"):
            await client.put_file("/files", tmp_path / "none", Got)
    async with ServiceClient("https://127.0.0.1:1") as client:
        with pytest.raises(InvalidInputError, match="http:// alone"):
            await client.put_file("/files", big, Got)


def test_the_kernel_says_how_long_a_client_has_been_silent() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as client,
    ):
        server, _ = listener.accept()
        take = {"take": lambda: (server, b"")}
        scope = {"headers": [(b"content-length", b"1000000")], "extensions": {EXTENSION: take}}
        body = RawBody(scope, 60.0)
        assert body.silent_s == 0.0
        with body:

            def has_come() -> bool:
                client.sendall(b"x")
                return body.readinto(memoryview(bytearray(1))) == 1 and body.silent_s < 0.3

            wait_for("a byte", has_come)
            wait_for("silence", lambda: body.silent_s > 0.3)
            wait_for("a byte", has_come)
        assert body.silent_s == 0.0
