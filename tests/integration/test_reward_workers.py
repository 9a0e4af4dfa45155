"""Several scoring processes: they share the queue, and a killed one costs nobody an answer."""

import asyncio
import os
import re
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from reward_service.service.request_handler import Answer, Answerer
from reward_service.service.workers import Workers
from reward_service.similarity.registry import Similarities
from services.errors import SettingsError, UnavailableError
from services.host.ports import free_port
from tests.processes import sgg_process, wait_ready
from tests.reward_process import REQUEST, TOKEN, running

CONFIG = '[model]\npath = "x"\n[data]\ntrain = "x"\n[reward]\nurl = "http://127.0.0.1:1"\n'


class ScriptedAnswerer(Answerer):
    """Does what the body says instead of scoring it, and answers with its process."""

    def __init__(self) -> None:
        super().__init__(Similarities())

    def answer(self, body: bytes) -> Answer:
        if body == b"die":
            os.kill(os.getpid(), signal.SIGKILL)
        if body == b"slow":
            time.sleep(0.5)
        return Answer(
            content=str(os.getpid()).encode(),
            rubric="balanced",
            num_groups=1,
            num_failed_groups=0,
            statuses={"ok": 1},
            scoring_s=0.1,
        )


@asynccontextmanager
async def two_workers() -> AsyncIterator[Workers]:
    workers = Workers(ScriptedAnswerer, 2)
    await workers.start()
    yield workers
    await workers.stop()


async def pids(workers: Workers, *bodies: bytes) -> list[int]:
    answers = await asyncio.gather(*map(workers.answer, bodies))
    return [int(answer.content) for answer in answers]


async def test_requests_go_to_whoever_is_free() -> None:
    async with two_workers() as workers:
        found = await pids(workers, b"slow", b"slow")
    assert len({*found, os.getpid()}) == 3


async def test_a_killed_worker_is_replaced_and_its_request_done_again() -> None:
    async with two_workers() as workers:
        before = await pids(workers, b"slow", b"slow")
        busy = asyncio.create_task(pids(workers, *[b"slow"] * 4))
        await asyncio.sleep(0.2)
        os.kill(before[0], signal.SIGKILL)
        assert len(await busy) == 4
        await workers.start()  # the replaced ones too
        after = await pids(workers, b"slow", b"slow")
    assert before[0] not in after
    assert len(set(after)) == 2


async def test_readiness_knows_of_dead_and_of_hung_workers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def until(said: str | None) -> None:
        async with asyncio.timeout(20):
            while (reason := workers.why_not_ready()) != said:
                if said is not None and reason is not None and said in reason:
                    return
                await asyncio.sleep(0.02)

    async with two_workers() as workers:
        assert workers.why_not_ready() is None
        for pid in await pids(workers, b"slow", b"slow"):
            os.kill(pid, signal.SIGKILL)
        await until("died")  # nobody has asked for a score meanwhile
        await until(None)
        await workers.start()
        found = await pids(workers, b"slow", b"slow")
        monkeypatch.setattr("reward_service.service.workers.SILENT_S", 0.2)
        for pid in found:
            os.kill(pid, signal.SIGSTOP)
        await until("no scoring worker has answered")
        for pid in found:
            os.kill(pid, signal.SIGCONT)
        await until(None)


async def test_a_request_that_kills_its_workers_is_given_up() -> None:
    async with two_workers() as workers:
        with pytest.raises(UnavailableError, match="scoring processes die"):
            await workers.answer(b"die")
        assert len(await pids(workers, b"")) == 1


def fail_to_start() -> Answerer:
    raise SettingsError("no such folder")


async def test_workers_that_cannot_start_are_not_waited_for() -> None:
    with pytest.raises(UnavailableError, match="the service's log"):
        await Workers(fail_to_start, 2).start()


def scoring_processes(parent: int) -> list[int]:
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [pid for pid in map(int, children) if b"spawn_main" in read(f"/proc/{pid}/cmdline")]


def is_alive(pid: int) -> bool:
    return bool(read(f"/proc/{pid}/cmdline"))  # a zombie's is empty


def read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(1200):
        if condition():
            return
        await asyncio.sleep(0.05)
    raise AssertionError("it never came true")


async def test_the_service_survives_a_killed_worker_and_leaves_none_behind(tmp_path: Path) -> None:
    port = free_port()
    url, log = f"http://127.0.0.1:{port}", tmp_path / "log"
    (tmp_path / "run.toml").write_text(CONFIG)
    arguments = ["--config", str(tmp_path / "run.toml"), "--port", str(port), "--workers", "2"]
    with sgg_process(log, "serve", "reward", *arguments) as service:
        wait_ready(url, service, log)
        first, second = scoring_processes(service.pid)
        num_answered = 0

        async def send_ten(client: httpx.AsyncClient) -> None:
            nonlocal num_answered
            for _ in range(10):
                answer = await client.post("/v1/rewards", json=REQUEST)
                assert answer.status_code == 200, answer.text
                num_answered += 1
                if num_answered == 20:
                    os.kill(first, signal.SIGKILL)

        async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=60) as client:
            await asyncio.gather(*(send_ten(client) for _ in range(8)))
            metrics = (await client.get("/metrics")).text
        assert "reward_scoring_seconds_count 80.0" in metrics
        assert "reward_queue_depth 0.0" in metrics
        await until(lambda: len(scoring_processes(service.pid)) == 2)
        now = scoring_processes(service.pid)
        assert first not in now
        service.kill()
        service.wait()
        await until(lambda: not any(map(is_alive, [second, *now])))


def test_each_process_has_the_terms_that_a_run_brings(tmp_path: Path) -> None:
    file = tmp_path / "my_rewards.py"
    file.write_text("def half(predicted, reference):\n    return 0.5\n")
    reward = {"workers": 2, "terms": [f"{file}:half"]}
    rubric = {"terms": {"triplet_f1": 5.0, "half": 2.0}}
    token = {"authorization": f"Bearer {TOKEN}"}
    with running(tmp_path / "log", reward=reward) as (url, _):
        answer = httpx.post(f"{url}/v1/rewards", json=REQUEST | {"rubric": rubric}, headers=token)
        terms = httpx.get(f"{url}/v1/rubrics", headers=token).json()["terms"]
    good, bad = answer.json()["groups"][0]["rewards"]
    assert (good["total"], good["breakdown"]) == (6.0, {"triplet_f1": 1.0, "half": 0.5})
    assert (bad["total"], bad["breakdown"]) == (0.0, {"triplet_f1": 0.0, "half": 0.0})
    assert re.fullmatch(r"half \(SHA-256 of its code: [0-9a-f]{16}\)", terms["half"]["formula"])
