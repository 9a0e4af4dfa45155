"""The limits of a connection, on real uvicorn and plain sockets."""

import asyncio
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import httpx
import pytest
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import Response, StreamingResponse

from services.http import protocol as http_protocol
from services.http.app import bind, create_app, server_config
from tests.processes import wait_for

HEAD_S = 0.4
BIG = 20_000_000
"""More than the kernel's buffers of a connection take."""


def _app() -> FastAPI:
    app = create_app(title="test", readiness=lambda: None, body_limit_bytes=10_000, data_token="d")

    @app.post("/v1/bytes")
    async def bytes_(request: Request) -> int:
        await asyncio.sleep(float(request.headers.get("x-sleep", 0)))
        return len(await request.body())

    @app.get("/v1/big")
    async def big() -> Response:
        return Response(b"x" * BIG)

    @app.get("/v1/stream")
    async def stream() -> Response:
        return StreamingResponse(b"x" * 100_000 for _ in range(BIG // 100_000))

    return app


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(http_protocol, "HEAD_S", HEAD_S)
        patch.setattr(http_protocol, "max_connections", lambda: 40)
        yield


@pytest.fixture(scope="module")
def server(quick: None) -> Iterator[uvicorn.Server]:
    app = _app()
    server = uvicorn.Server(server_config(app))
    with bind(app, "http://127.0.0.1:0") as listener:
        server.address = listener.getsockname()  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        wait_for("a server", lambda: server.started)
        yield server
        server.should_exit = True
        thread.join(10)


@contextmanager
def connection(server: uvicorn.Server, data: bytes = b"") -> Iterator[socket.socket]:
    with socket.create_connection(server.address, timeout=10) as client:  # type: ignore[attr-defined]
        client.sendall(data)
        yield client


def read(client: socket.socket) -> bytes:
    """All, until the service closes the connection."""
    found = bytearray()
    try:
        while piece := client.recv(1 << 20):
            found += piece
    except ConnectionError:
        pass
    return bytes(found)


def status(answer: bytes) -> int:
    found = re.match(rb"HTTP/1.1 (\d+)", answer)
    return int(found[1]) if found else 0


def send_for_ever(client: socket.socket, piece: bytes, most: int = 50_000_000) -> int:
    """Bytes that were taken until the service hung up."""
    sent = 0
    try:
        while sent < most:
            client.sendall(piece)
            sent += len(piece)
    except ConnectionError:
        pass
    return sent


def healthy(server: uvicorn.Server) -> bool:
    host, port = server.address[:2]  # type: ignore[attr-defined]
    return httpx.get(f"http://{host}:{port}/healthz", trust_env=False).status_code == 200


@pytest.mark.parametrize(
    ("head", "endless"),
    [
        (b"GET /", b"a" * 65_536),
        (b"GET / HTTP/1.1\r\nhost: localhost\r\nx: ", b"a" * 65_536),
        (b"GET / HTTP/1.1\r\n", b"a: b\r\n" * 10_000),
        (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 101 + b"\r\n", b""),
        (b"", b"a" * 65_536),
        (b"", b"\r\n" * 30_000),
        (b"GET /healthz HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n1;", b"a" * 65_536),
        (
            b"POST /v1/bytes HTTP/1.1\r\nauthorization: Bearer d\r\n"
            b"transfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\nx: ",
            b"a" * 65_536,
        ),
    ],
    ids=["url", "header", "headers", "count", "method", "line-ends", "chunk", "trailer"],
)
def test_an_endless_head_ends(server: uvicorn.Server, head: bytes, endless: bytes) -> None:
    with connection(server, head) as client:
        assert not endless or send_for_ever(client, endless) < 20_000_000
        assert status(read(client)) in (0, 200, 400, 431)
    assert healthy(server)


def test_a_long_head_is_431_and_a_usual_one_is_served(server: uvicorn.Server) -> None:
    line = b"GET /healthz HTTP/1.1\r\nx: %s\r\nconnection: close\r\n\r\n"
    for size, expected in ((30_000, 200), (33_000, 431)):
        with connection(server, line % (b"a" * size)) as client:
            answer = read(client)
        assert status(answer) == expected
    assert b"application/problem+json" in answer
    assert b"over 32768 bytes or 100 headers" in answer


def test_what_is_no_http_is_a_problem_of_400(server: uvicorn.Server) -> None:
    for text in (b"\x16\x03\x01\x02\x00", b"GET \xff HTTP/1.1\r\n\r\n", b"GET a b c\r\n\r\n"):
        with connection(server, text) as client:
            assert status(read(client)) == 400


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET /healthz HTTP/1.1\r\nx: ",
        b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\nGET /",
        b"POST /v1/bytes HTTP/1.1\r\ncontent-length: 9000\r\n\r\nhalf",
        b"GET /healthz HTTP/1.1\r\ncontent-length: 9000\r\n\r\nhalf",
    ],
    ids=["nothing", "half-head", "second-head", "refused-body", "public-body"],
)
def test_a_slow_request_ends(server: uvicorn.Server, sent: bytes) -> None:
    started = time.monotonic()
    with connection(server, sent) as client:
        answer = read(client)
    assert HEAD_S * 0.9 < time.monotonic() - started < 5
    assert b"HTTP/1.1 408" in answer
    assert status(answer) == (408 if b"\r\n\r\n" not in sent else 401 if b"POST" in sent else 200)


def test_dripping_bytes_do_not_renew_the_time(server: uvicorn.Server) -> None:
    with connection(server, b"GET /healthz HTTP/1.1\r\nx: ") as client:
        deadline = time.monotonic() + 10
        with suppress(ConnectionError):
            while time.monotonic() < deadline:
                client.sendall(b"a")
                time.sleep(HEAD_S / 10)
        assert time.monotonic() < deadline


def test_a_request_at_work_has_all_the_time_that_it_needs(server: uvicorn.Server) -> None:
    with connection(
        server,
        b"POST /v1/bytes HTTP/1.1\r\nauthorization: Bearer d\r\ncontent-length: 3\r\n"
        b"x-sleep: %.1f\r\nconnection: close\r\n\r\nabc" % (3 * HEAD_S),
    ) as client:
        answer = read(client)
    assert (status(answer), answer[-1:]) == (200, b"3")


@pytest.mark.parametrize("path", [b"/v1/big", b"/v1/stream"])
def test_an_answer_that_nobody_reads_is_dropped_and_a_slow_reader_gets_it(
    server: uvicorn.Server, path: bytes
) -> None:
    request = b"GET %s HTTP/1.1\r\nauthorization: Bearer d\r\n\r\n" % path
    before = len(server.server_state.connections)
    with connection(server, request), connection(server, request) as slow:
        got = 0
        while got < BIG:
            got += len(slow.recv(BIG // 10))
            time.sleep(HEAD_S / 10)
        wait_for("the end", lambda: len(server.server_state.connections) <= before + 1, 10)


def test_of_too_many_connections_the_idlest_end(server: uvicorn.Server) -> None:
    head = b"POST /v1/bytes HTTP/1.1\r\nauthorization: Bearer d\r\ncontent-length: 1\r\n"
    at_work = head + b"x-sleep: 0.3\r\nconnection: close\r\n\r\na"
    with connection(server, at_work) as busy:
        idle = [socket.create_connection(server.address) for _ in range(200)]  # type: ignore[attr-defined]
        assert healthy(server)
        assert len(server.server_state.connections) <= 40
        assert status(read(busy)) == 200
        for client in idle:
            client.close()


def test_requests_are_answered_in_turn_on_one_connection(server: uvicorn.Server) -> None:
    line = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n"
    with connection(server, line * 2) as client:
        assert read(client).count(b"HTTP/1.1 200") == 2
    with connection(server, line * 1000) as client:
        assert b"HTTP/1.1 200" not in read(client)
