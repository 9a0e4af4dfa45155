"""Who is asked next, and what happens when a server goes away: over HTTP, on scripted servers."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest
import uvicorn
from fastapi import FastAPI, Request, Response

from evaluation.inference import fleet as fleet_module
from evaluation.inference.fleet import Fleet, Member, next_member
from services.errors import (
    ConflictError,
    EngineError,
    InvalidInputError,
    UnauthorizedError,
    UnavailableError,
)
from services.host.ports import free_port
from services.http import app as service
from services.http.clients.rollout import RolloutClient
from services.http.problems import add_problem_handlers, mistake
from services.schemas.common import ChatMessage, TextPart
from services.schemas.rollouts import RolloutRequest
from services.settings import load_settings

REQUEST = RolloutRequest(
    messages=[ChatMessage(role="user", content=[TextPart(text="Scene graph:")])]
)


class InStep:
    """Holds answers until so many are wanted at once: who is asked depends on no clock."""

    def __init__(self, size: int) -> None:
        self._size, self._num, self._lock = size, 0, threading.Lock()

    async def __call__(self) -> None:
        with self._lock:
            self._num += 1
            last = -(-self._num // self._size) * self._size
        while self._num < last:  # noqa: ASYNC110  # the servers have event loops of their own
            await asyncio.sleep(0.002)


class Scripted:
    """A rollout server that answers at once, or raises what it is told to."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.reset()
        self.app = FastAPI()
        add_problem_handlers(self.app)
        self.app.post("/v1/rollouts")(self.rollouts)
        self.app.get("/v1/policy")(self.policy)

    def reset(self) -> None:
        self.error: Exception | None = None
        self.model = "m"
        self.version = 3
        self.num_asked = 0
        self.most_at_once = 0
        self._at_once = 0
        self.pause: Callable[[], Awaitable[None]] = partial(asyncio.sleep, 0.01)

    async def rollouts(self, request: Request) -> Response:
        self.num_asked += 1
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        await self.pause()
        self._at_once -= 1
        if self.error is not None:
            raise self.error
        return Response(
            '{"server_id": "s", "prompt_token_ids": [1], "completions": [{"text": "", "token_ids":'
            ' [1], "rollout_logprobs": [0.0], "finish_reason": "stop", "policy_versions": []}]}'
        )

    async def policy(self) -> dict[str, object]:
        if isinstance(self.error, UnauthorizedError | UnavailableError):
            raise self.error
        return {
            "server_id": "s",
            "model": self.model,
            "dtype": "float32",
            "policy_version": self.version,
            "incarnation": 1,
            "checksum": None,
            "state": "ready",
        }


@contextmanager
def scripted() -> Iterator[Scripted]:
    server = Scripted(f"http://127.0.0.1:{free_port()}")
    server.app.state.missing_tokens = []
    http = uvicorn.Server(uvicorn.Config(server.app, log_config=None))
    listener = service.bind(server.app, server.url)
    thread = threading.Thread(target=http.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.should_exit = True
        thread.join(10)
        listener.close()


@pytest.fixture(scope="module")
def three() -> Iterator[list[Scripted]]:
    with ExitStack() as stack:
        yield [stack.enter_context(scripted()) for _ in range(3)]


@pytest.fixture
def servers(three: list[Scripted], monkeypatch: pytest.MonkeyPatch) -> list[Scripted]:
    """As new; pauses are short, so that they return soon."""
    monkeypatch.setattr(fleet_module, "_FIRST_PAUSE_S", 0.02)
    for server in three:
        server.reset()
    return three


def fleet_of(servers: list[Scripted], *, per_server: int = 4, patience_s: float = 30) -> Fleet:
    urls = [server.url for server in servers]
    settings = load_settings([Path("configs/demo.toml")], [f"trainer.wait_timeout_s={patience_s}"])
    return Fleet(settings, urls, per_server=per_server)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - of a server in another thread
            await asyncio.sleep(0.02)


def member(url: str, **fields: int) -> Member:
    return Member(url, RolloutClient(f"http://{url}"), up=True, **fields)


def test_fifteen_prompts_on_eight_servers() -> None:
    members = [member(str(i)) for i in range(8)]
    for _ in range(15):
        chosen = next_member(members, per_server=64)
        assert chosen is not None
        chosen.in_flight += 1
        chosen.asked += 1
    assert [m.asked for m in members] == [2, 2, 2, 2, 2, 2, 2, 1]


def test_the_least_busy_is_next_then_the_least_used_then_the_first() -> None:
    busy, used, fresh = member("a", in_flight=1), member("b", asked=9), member("c", asked=2)
    other = member("d", asked=2)
    assert next_member([busy, used, fresh, other], 2) is fresh
    fresh.up = other.up = False
    assert next_member([busy, used, fresh, other], 2) is used
    used.in_flight = 2
    assert next_member([busy, used, fresh, other], 2) is busy
    assert next_member([busy, used, fresh, other], 1) is None


async def test_all_are_asked_alike_and_never_more_at_once_than_said(
    servers: list[Scripted],
) -> None:
    pause = InStep(3 * 4)
    for server in servers:
        server.pause = pause
    async with fleet_of(servers, per_server=4) as fleet:
        await fleet.meet(model="m")
        await asyncio.gather(*(fleet.ask(REQUEST) for _ in range(60)))
    assert [server.num_asked for server in servers] == [20, 20, 20]
    assert all(server.most_at_once <= 4 for server in servers)


async def test_requests_of_a_server_that_fails_go_to_others_until_it_is_back(
    servers: list[Scripted],
) -> None:
    servers[0].error = UnavailableError("stopping")
    async with fleet_of(servers) as fleet:
        await fleet.meet(model="m")
        assert fleet.num_up == 2
        servers[1].error = EngineError("out of memory")
        await asyncio.gather(*(fleet.ask(REQUEST) for _ in range(30)))
        assert servers[0].num_asked == 0
        assert servers[2].num_asked >= 20
        servers[0].error = servers[1].error = None
        await until(lambda: fleet.num_up == 3)
        before = [server.num_asked for server in servers]
        await asyncio.gather(*(fleet.ask(REQUEST) for _ in range(3)))
        asked = [server.num_asked - b for server, b in zip(servers, before, strict=True)]
        assert asked == [1, 1, 1]


async def test_a_server_that_comes_back_with_other_weights_stays_out(
    servers: list[Scripted],
) -> None:
    async with fleet_of(servers) as fleet:
        await fleet.meet(model="m")
        for server, version, model in ((servers[0], 0, "m"), (servers[1], 3, "other")):
            server.error, server.version, server.model = EngineError("died"), version, model
        await asyncio.gather(*(fleet.ask(REQUEST) for _ in range(12)))
        servers[0].error = servers[1].error = None
        await asyncio.sleep(0.2)
        assert [m.up for m in fleet.members] == [False, False, True]
        servers[0].version = 4  # a trainer has sent it a newer one
        await until(lambda: fleet.members[0].up)
        assert not fleet.members[1].up


async def test_a_refusal_is_the_requests_fault_and_nobody_else_is_asked(
    servers: list[Scripted],
) -> None:
    for server in servers:
        server.error = InvalidInputError("the prompt is too long")
    async with fleet_of(servers) as fleet:
        await fleet.meet(model="m")
        with pytest.raises(InvalidInputError, match="too long"):
            await fleet.ask(REQUEST)
        assert sum(server.num_asked for server in servers) == 1
        assert fleet.num_up == 3


async def test_a_server_that_does_not_know_a_field_is_named_and_no_image_is_blamed(
    servers: list[Scripted],
) -> None:
    servers[0].error = mistake("body.sampling.token_ends", "Extra inputs are not permitted")
    async with fleet_of(servers[:1]) as fleet:
        await fleet.meet(model="m")
        with pytest.raises(
            ConflictError, match=r"earlier release.*again.*sampling\.token_ends"
        ) as e:
            await fleet.ask(REQUEST)
    assert servers[0].url in e.value.message


async def test_a_request_that_breaks_every_engine_is_given_up(servers: list[Scripted]) -> None:
    for server in servers:
        server.error = EngineError("CUDA error")
    async with fleet_of(servers) as fleet:
        await fleet.meet(model="m")
        with pytest.raises(EngineError, match="CUDA error"):
            await fleet.ask(REQUEST)
    assert sum(server.num_asked for server in servers) == fleet_module.MAX_FAILURES


async def test_without_any_server_the_wait_ends_and_says_how_to_go_on(
    servers: list[Scripted],
) -> None:
    async with fleet_of(servers, patience_s=0.5) as fleet:
        await fleet.meet(model="m")
        for server in servers:
            server.error = UnavailableError("stopping")
        started = time.monotonic()
        with pytest.raises(UnavailableError, match=r"no rollout server answered.*repeat"):
            await fleet.ask(REQUEST)
        assert time.monotonic() - started >= 0.5


async def test_servers_of_different_versions_or_models_are_refused(
    servers: list[Scripted],
) -> None:
    servers[1].version = 4
    async with fleet_of(servers) as fleet:
        with pytest.raises(ConflictError, match="different versions") as caught:
            await fleet.meet(model="m")
        assert all(server.url in caught.value.message for server in servers)
        assert (await fleet.meet(model="m", one_version=False)).policy_version == 3
        with pytest.raises(ConflictError, match="the model m/merged"):
            await fleet.meet(model="m/merged", one_version=False)


async def test_a_wrong_token_is_said_at_once_and_where_it_is_set(servers: list[Scripted]) -> None:
    servers[0].error = UnauthorizedError("no token")
    async with fleet_of(servers) as fleet:
        with pytest.raises(UnauthorizedError, match=r"no token; this command.*SGG_DATA_TOKEN"):
            await fleet.meet(model="m")
