"""The client against a small real HTTP server that answers what it is told to."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from typing import Any, NamedTuple

import pytest

from services.errors import (
    EngineError,
    InvalidInputError,
    SggError,
    TooLargeError,
    UnavailableError,
)
from services.http.clients.reward import RewardClient
from services.http.problems import problem_response
from services.schemas.rewards import RewardRequest
from tests.reward_process import GOLDEN, REQUEST

RESPONSE: dict[str, Any] = json.loads((GOLDEN / "reward_response.json").read_text())


class Scripted(NamedTuple):
    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()


class Server(ThreadingHTTPServer):
    """Gives each of its answers once; the last one again and again."""

    def __init__(self, *answers: Scripted) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers = list(answers)
        self.times: list[float] = []
        """When requests came, in seconds."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.times.append(time.monotonic())
        answers = self.server.answers
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        self.send_response(answer.status)
        self.send_header("Content-Length", str(len(answer.body)))
        for name, value in answer.headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer.body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def serving(*answers: Scripted) -> Iterator[Server]:
    with Server(*answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def refusal(error: SggError, retry_after: str | None = None) -> Scripted:
    headers = () if retry_after is None else (("Retry-After", retry_after),)
    return Scripted(error.status, bytes(problem_response(error).body), headers)


def scored(**changes: Any) -> Scripted:
    return Scripted(200, json.dumps(RESPONSE | changes).encode())


async def ask(server: Server, timeout_s: float = 30) -> Any:
    async with RewardClient(server.url, timeout_s=timeout_s) as client:
        return await client.score(RewardRequest.model_validate(REQUEST))


@pytest.mark.parametrize("error", [InvalidInputError("wrong"), TooLargeError("too large")])
async def test_what_cannot_help_again_is_sent_once(error: SggError) -> None:
    with serving(refusal(error), scored()) as server:
        with pytest.raises(type(error), match=error.message):
            await ask(server)
        assert len(server.times) == 1


async def test_a_saturated_service_is_asked_again_when_it_said() -> None:
    busy = refusal(UnavailableError("busy"), retry_after="1")
    with serving(busy, busy, scored()) as server:
        assert len((await ask(server)).groups) == 1
        assert len(server.times) == 3
        pauses = [later - earlier for earlier, later in pairwise(server.times)]
        assert min(pauses) >= 1.0  # without the header it would be 0.2 s at most


async def test_a_pause_beyond_the_deadline_ends_at_the_deadline() -> None:
    with serving(refusal(UnavailableError("busy"), retry_after="3600")) as server:
        with pytest.raises(UnavailableError, match="busy"):
            await ask(server, timeout_s=0.5)
        assert len(server.times) == 1


@pytest.mark.parametrize("asked", ["Wed, 21 Oct 2065 07:28:00 GMT", "-1", "²", ""])
async def test_a_pause_that_is_no_number_is_the_clients_own(asked: str) -> None:
    with serving(refusal(UnavailableError("busy"), retry_after=asked), scored()) as server:
        assert len((await ask(server)).groups) == 1


async def test_a_group_that_failed_keeps_its_error() -> None:
    group = RESPONSE["groups"][0]
    failed = group | {"rewards": [], "error": {"detail": "it crashed", "retryable": True}}
    with serving(scored(groups=[failed])) as server:
        answered = (await ask(server)).groups[0]
    assert answered.error.detail == "it crashed"
    assert answered.error.retryable is True
    assert answered.rewards == []


@pytest.mark.parametrize(
    "changes",
    [
        {"group_id": "another"},
        {"rewards": []},
        {"rewards": RESPONSE["groups"][0]["rewards"][:1]},
        {"error": {"detail": "it crashed"}},
    ],
)
async def test_an_answer_for_another_request_is_refused(changes: dict[str, Any]) -> None:
    answer = scored(groups=[RESPONSE["groups"][0] | changes])
    with serving(answer) as server, pytest.raises(EngineError, match="other groups"):
        await ask(server)


async def test_too_few_groups_are_refused() -> None:
    with serving(scored(groups=[])) as server, pytest.raises(EngineError, match="other groups"):
        await ask(server)
