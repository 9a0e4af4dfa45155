"""The frame of every service, in process: tokens by path, errors to problems and back."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from pydantic import BaseModel

from services import errors
from services.host.addresses import host_and_port
from services.http.app import bind, create_app, serve
from services.http.guard import check_host, check_json
from services.http.problems import error_from_problem, problem_response


def make_app(**more: Any) -> FastAPI:
    fields: dict[str, Any] = {
        "title": "test service",
        "readiness": lambda: None,
        "body_limit_bytes": 1000,
    }
    app = create_app(**(fields | more))

    @app.get("/v1/data")
    @app.get("/v1/weights/stage")
    async def answer() -> str:
        return "yes"

    @app.get("/v1/crash")
    async def crash() -> str:
        raise RuntimeError("secret detail")

    @app.get("/v1/full")
    async def full() -> str:
        raise errors.UnavailableError("256 requests are in flight")

    return app


async def get(app: FastAPI, path: str, token: str = "") -> httpx.Response:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        return await client.get(path, headers={"Authorization": f"Bearer {token}"})


@pytest.mark.parametrize(
    ("data", "admin", "path", "given", "status"),
    [
        (None, None, "/v1/data", "", 200),
        (None, None, "/v1/weights/stage", "", 200),
        ("d", "a", "/v1/data", "d", 200),
        ("d", "a", "/v1/data", "a", 200),
        ("d", "a", "/v1/data", "", 401),
        ("d", "a", "/v1/weights/stage", "a", 200),
        ("d", "a", "/v1/weights/stage", "d", 401),
        ("d", "a", "/v1/nothing", "", 401),
        ("d", "a", "/v1/nothing", "d", 404),
        ("d", "a", "/openapi.json", "", 401),
        ("d", "a", "/healthz", "", 200),
        ("d", "a", "/readyz", "", 200),
        ("d", "a", "/metrics", "", 200),
        ("d", None, "/v1/weights/stage", "d", 200),
        ("d", None, "/v1/weights/stage", "", 401),
        (None, "a", "/v1/data", "", 200),
        (None, "a", "/v1/weights/stage", "", 401),
    ],
)
async def test_tokens_by_path(
    data: str | None, admin: str | None, path: str, given: str, status: int
) -> None:
    app = make_app(data_token=data, admin_token=admin, admin_paths=("/v1/weights",))
    assert (await get(app, path, given)).status_code == status


async def test_not_ready_says_why_and_health_stays() -> None:
    app = make_app(readiness=lambda: "the engine is starting")
    answer = await get(app, "/readyz")
    assert (answer.status_code, answer.json()["reason"]) == (503, "the engine is starting")
    assert (await get(app, "/healthz")).status_code == 200


class Note(BaseModel):
    text: Any


def with_bodies(**more: Any) -> FastAPI:
    app = make_app(**more)

    @app.post("/v1/parsed")
    async def parsed(note: Note) -> None:
        pass

    @app.post("/v1/bytes")
    async def bytes_(request: Request) -> int:
        return len(await request.body())

    return app


async def test_json_is_checked_for_nesting_before_it_is_parsed() -> None:
    deep = b'{"text": ' + b"[" * 40 + b"]" * 40 + b"}"
    transport = httpx.ASGITransport(with_bodies())
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        json_type = {"Content-Type": "application/json"}
        answer = await client.post("/v1/parsed", content=deep, headers=json_type)
        assert answer.status_code == 422
        assert "nested deeper than 32" in answer.json()["detail"]
        assert (await client.post("/v1/parsed", json={"text": [1]})).status_code == 200
        # A handler that reads bytes parses them elsewhere, with limits of its own.
        assert (await client.post("/v1/bytes", content=deep)).json() == len(deep)


async def test_streamed_bodies_go_to_the_handler_unread_but_not_without_a_token() -> None:
    app = with_bodies(
        data_token="d", admin_token="a", admin_paths=("/v1",), streamed_paths=("/v1/files",)
    )
    reached = asyncio.Event()

    @app.put("/v1/files/{name}")
    async def first_chunk(name: str, request: Request) -> int:
        reached.set()
        return len(await anext(request.stream()))

    async def endless() -> AsyncIterator[bytes]:
        yield b"x" * 5000
        await reached.wait()
        yield b"y"

    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        for token, status in (("d", 401), ("", 401), ("a", 200)):
            answer = await client.put(
                "/v1/files/x", content=endless(), headers={"Authorization": f"Bearer {token}"}
            )
            assert answer.status_code == status
            assert reached.is_set() == (status == 200)
        assert answer.json() == 5000
        other = await client.post(
            "/v1/bytes", content=b"x" * 5000, headers={"Authorization": "Bearer a"}
        )
        assert other.status_code == 413


async def test_bodies_together_have_a_limit_too() -> None:
    app = with_bodies(held_limit_bytes=1500)
    resume = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b"x" * 900
        await resume.wait()

    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        # ASGITransport streams a request's body, so the first one is half here.
        first = asyncio.create_task(client.post("/v1/bytes", content=slow()))
        await asyncio.sleep(0.05)
        assert (await client.post("/v1/bytes", content=b"x" * 500)).json() == 500
        refused = await client.post("/v1/bytes", content=b"x" * 700)
        assert (refused.status_code, refused.json()["retryable"]) == (503, True)
        assert "1500 bytes" in refused.json()["detail"]
        assert (await client.get("/healthz")).status_code == 200
        resume.set()
        assert (await first).json() == 900
        assert (await client.post("/v1/bytes", content=b"x" * 1000)).json() == 1000
        assert (await client.post("/v1/bytes", content=b"x" * 1001)).status_code == 413


async def test_a_service_that_cannot_start_says_so() -> None:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        raise RuntimeError("no engine")
        yield

    with pytest.raises(errors.UnavailableError, match="test service did not start"):
        await asyncio.to_thread(serve, make_app(lifespan=lifespan), "http://127.0.0.1:0")


async def test_an_unexpected_error_shows_nothing() -> None:
    answer = await get(make_app(), "/v1/crash")
    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert "secret" not in answer.text
    assert answer.json()["retryable"] is False


async def test_backpressure_says_when_to_come_back() -> None:
    answer = await get(make_app(), "/v1/full")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.json()["retryable"] is True
    assert answer.json()["type"] == "urn:sgg:UnavailableError"


async def test_metrics_count_by_route_and_not_by_path() -> None:
    app = make_app()
    for path in ("/v1/data", "/v1/unknown1", "/v1/unknown2"):
        await get(app, path)
    text = (await get(app, "/metrics")).text
    assert 'http_requests_total{method="GET",route="/v1/data",status="200"} 1.0' in text
    assert 'route="unknown",status="404"} 2.0' in text


@pytest.mark.parametrize(
    "cls",
    [
        errors.SggError,
        errors.InvalidInputError,
        errors.SettingsError,
        errors.UnauthorizedError,
        errors.NotFoundError,
        errors.MalformedRequestError,
        errors.SlowRequestError,
        errors.ConflictError,
        errors.TooLargeError,
        errors.MediaTypeError,
        errors.MisdirectedError,
        errors.HeadTooLargeError,
        errors.ClientGoneError,
        errors.UnavailableError,
        errors.WaitTimeoutError,
        errors.NoRoomError,
        errors.EngineError,
    ],
)
def test_an_error_crosses_the_wire_as_itself(cls: type[errors.SggError]) -> None:
    answer = problem_response(cls("what to do"))
    assert answer.status_code == cls.status
    back = error_from_problem(answer.status_code, bytes(answer.body).decode(), asked="")
    assert (type(back), back.message) == (cls, "what to do")
    assert json.loads(bytes(answer.body))["retryable"] is cls.retryable


@pytest.mark.parametrize(
    ("status", "text", "cls"),
    [
        (502, "<html>bad gateway</html>", errors.UnavailableError),
        (503, "", errors.UnavailableError),
        (504, "[]", errors.WaitTimeoutError),
        (408, "slow", errors.WaitTimeoutError),
        (405, "<html>not allowed</html>", errors.NotFoundError),
        (400, '{"detail": "bad"}', errors.InvalidInputError),
        (418, "teapot", errors.InvalidInputError),
        (500, "{}", errors.SggError),
        (404, '{"type": "about:blank", "detail": "Not Found"}', errors.NotFoundError),
    ],
)
def test_answers_of_strangers_become_errors(
    status: int, text: str, cls: type[errors.SggError]
) -> None:
    error = error_from_problem(status, text, asked="GET http://host/v1/policy")
    assert type(error) is cls
    assert error.message.startswith(f"GET http://host/v1/policy answered HTTP {status}")
    assert ("is it the address of that service?" in error.message) == (status in (404, 405))


def test_json_is_refused_for_its_shape() -> None:
    check_json(b"[" * 32 + b"]" * 32)
    check_json(b"[],[]" * 100)
    check_json(b'"' + b"[" * 100 + b'"')
    check_json(b'["' + b"," * 500_000 + b'"]')
    with pytest.raises(errors.InvalidInputError, match="32"):
        check_json(b"[" * 33 + b"]" * 33)
    keys = b",".join(b'"k%d":0' % i for i in range(600_000))
    for wide in (b"{" + keys + b"}", b"[" + b"[]," * 300_001 + b"]"):
        with pytest.raises(errors.TooLargeError, match="over 300000 values"):
            check_json(wide)


@pytest.mark.parametrize(
    ("host", "served"),
    [
        ("127.0.0.1:8100", True),
        ("10.1.2.3", True),
        ("[::1]:8100", True),
        ("LocalHost:8100", True),
        ("reward", True),
        ("", True),
        ("evil.example", False),
        ("reward.evil.example:8100", False),
        ("127.0.0.1.evil.example", False),
        ("[evil]", False),
    ],
)
async def test_a_request_for_another_name_is_refused(host: str, served: bool) -> None:
    names = {"reward"}
    if served:
        check_host(host.encode(), names)
        return
    with pytest.raises(errors.MisdirectedError, match="is not called"):
        check_host(host.encode(), names)
    transport = httpx.ASGITransport(make_app(url="http://reward:8100"))
    async with httpx.AsyncClient(transport=transport, base_url="http://reward") as client:
        assert (await client.get("/healthz")).status_code == 200
        assert (await client.get("/healthz", headers={"Host": host})).status_code == 421


async def test_a_slow_body_ends_and_a_client_that_leaves_is_499(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("services.http.guard.BODY_S", 0.05)
    app = with_bodies()

    async def slow() -> AsyncIterator[bytes]:
        yield b"x"
        await asyncio.sleep(30)

    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        answer = await client.post("/v1/bytes", content=slow())
        assert (answer.status_code, answer.json()["retryable"]) == (408, True)
        # What was held is free again.
        assert (await client.post("/v1/bytes", content=b"x" * 1000)).status_code == 200
        await _leave(app, "/v1/bytes")
        assert 'status="499"} 1.0' in (await client.get("/metrics")).text


async def _leave(app: FastAPI, path: str) -> None:
    """A client that sends half a body."""
    scope = {"type": "http", "method": "POST", "path": path, "headers": [], "query_string": b""}
    messages = iter(
        [{"type": "http.request", "body": b"x", "more_body": True}, {"type": "http.disconnect"}]
    )

    async def receive() -> Any:
        return next(messages)

    async def send(_: Any) -> None:
        pass

    await app(scope, receive, send)


async def test_a_body_says_that_it_is_json() -> None:
    transport = httpx.ASGITransport(with_bodies())
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        for media_type in ("text/plain", "application/x-www-form-urlencoded", ""):
            answer = await client.post(
                "/v1/parsed", content=b'{"text": 1}', headers={"Content-Type": media_type}
            )
            assert answer.status_code == 415


async def test_public_paths_leave_a_body_unread() -> None:
    async def endless() -> AsyncIterator[bytes]:
        raise AssertionError("it was read")
        yield b""

    transport = httpx.ASGITransport(make_app(data_token="d"))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        answer = await client.request("GET", "/metrics", content=endless())
        assert answer.status_code == 200


@pytest.mark.parametrize("url", ["http://127.0.0.1", "127.0.0.1:80", "http://x:y", "", "8100"])
def test_a_malformed_address_is_named(url: str) -> None:
    with pytest.raises(errors.SettingsError, match=r"not a URL"):
        host_and_port(url)


@pytest.mark.parametrize(
    ("host", "data", "admin", "missing"),
    [
        ("0.0.0.0", None, None, "SGG_DATA_TOKEN and SGG_ADMIN_TOKEN"),
        ("0.0.0.0", "d" * 16, None, "SGG_ADMIN_TOKEN"),
        ("[::]", None, "a" * 16, "SGG_DATA_TOKEN"),
        ("0.0.0.0", "d" * 15, "a" * 16, "SGG_DATA_TOKEN"),
        ("0.0.0.0", "d" * 16, "a" * 15, "SGG_ADMIN_TOKEN"),
    ],
)
def test_beyond_loopback_tokens_are_needed(
    host: str, data: str | None, admin: str | None, missing: str
) -> None:
    app = make_app(data_token=data, admin_token=admin, admin_paths=("/v1/weights",))
    with pytest.raises(errors.SettingsError, match=f"without {missing} of 16 characters or more: "):
        bind(app, f"http://{host}:0")


def test_with_tokens_any_host_and_without_them_loopback() -> None:
    with bind(make_app(data_token="d" * 16), "http://0.0.0.0:0") as listener:
        assert listener.getsockname()[1] > 0
    with bind(make_app(), "http://localhost:0") as listener:
        assert listener.getsockname()[0] == "127.0.0.1"
