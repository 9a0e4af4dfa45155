"""`sgg_rl.Client` and `sgg_rl.connect` on real services: in scripts, and in a loop that runs."""

import asyncio
import re
import signal
import subprocess
import sys
import threading
import traceback
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import sgg_rl
from reward_service.service.app import build_app
from rollout_service.fake.engine import FakeEngine
from services.errors import InvalidInputError, NotFoundError, UnauthorizedError, UnavailableError
from services.host.ports import free_port
from services.http.clients.sync import run_here
from services.run_folder import RunFolder
from services.schemas.common import ChatMessage, Sampling, TextPart
from services.schemas.rollouts import RolloutRequest
from services.settings import Settings, dump_settings
from tests.live_servers import LiveServer, cluster_settings, served, serving, wait_registered
from tests.processes import wait_for
from tests.python_examples import REWARD, ROLLOUT, failures, make_example_folder

TOKEN = "data-secret"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clients")
    make_example_folder(folder)
    return folder


@pytest.fixture(scope="module")
def server(folder: Path, redis_url: str) -> Iterator[LiveServer]:
    """A rollout server and the reward service of a run that has written its settings."""
    settings = cluster_settings(folder, f"test-{uuid.uuid4().hex[:12]}", redis_url, "http")
    tree = settings.model_dump(mode="json", exclude_none=True)
    tree["data"]["template"] = "toy"
    tree["reward"]["url"] = f"http://127.0.0.1:{free_port()}"
    settings = Settings.model_validate(tree)
    engine = FakeEngine(tokens_per_s=20_000, max_model_len=3072)
    with serving(settings, engine) as server, served(build_app(settings), settings.reward.url):
        run = settings.run.folder
        run.mkdir(exist_ok=True)
        RunFolder(run).config.write_text(dump_settings(settings))
        yield server


@pytest.fixture
def client(server: LiveServer) -> Iterator[sgg_rl.Client]:
    reward = server.settings.reward.url
    with sgg_rl.Client(rollout_url=server.url, reward_url=reward, token=TOKEN) as client:
        yield client


def addresses(server: LiveServer) -> dict[str, str]:
    """What stands for the addresses of examples; these servers ask for a token too."""
    return {
        f'rollout_url="{ROLLOUT}"': f'token="{TOKEN}", rollout_url="{server.url}"',
        REWARD: server.settings.reward.url,
    }


@pytest.mark.parametrize("name", ["Client", "AsyncClient", "predict"])
def test_the_example_of_each_client_runs(
    name: str, server: LiveServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    num, wrong = failures(getattr(sgg_rl, name).__doc__, name, addresses(server))
    assert num
    assert wrong == ""


def test_the_examples_of_the_page_run(
    server: LiveServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    page = (Path(__file__).parents[2] / "docs/python.md").read_text()
    blocks = re.findall(r"^```python\n(>>> .*?)^```$", page, re.M | re.S)
    num, wrong = failures("\n".join(blocks), "python.md", addresses(server))
    assert num > 15
    assert wrong == ""


def question() -> RolloutRequest:
    text = TextPart(text="Write the scene graph.")
    message = ChatMessage(role="user", content=[text])
    return RolloutRequest(messages=[message], sampling=Sampling(n=3, max_tokens=64))


def test_a_script_asks_and_scores(client: sgg_rl.Client, folder: Path) -> None:
    answers = [c.text for c in client.rollout.rollouts(question()).completions]
    assert len(answers) == 3
    sample = sgg_rl.load_dataset(folder / "toy/heldout.parquet")[0]
    many = answers * 100  # more than one message holds
    assert sgg_rl.score(many, sample, client=client) == sgg_rl.score(many, sample)
    with pytest.raises(InvalidInputError, match=r"^rubric: no rubric 'none'"):
        sgg_rl.score(answers, sample, rubric="none", client=client)


def test_a_script_that_forks_and_closes_nothing_ends_without_noise(server: LiveServer) -> None:
    program = (
        "import os, sys, sgg_rl\n"
        "client = sgg_rl.Client(rollout_url=sys.argv[1], token=sys.argv[2])\n"
        "def ask():  # one write a line: two processes write at once\n"
        "    os.write(1, f'{client.rollout.policy().state}\\n'.encode())\n"
        "ask()\n"
        "child = os.fork()\n"
        "ask()\n"
        "if child:\n"
        "    assert os.waitpid(child, 0)[1] == 0\n"
        "    ask()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, server.url, TOKEN],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "ready\n" * 4, "")


async def test_it_works_where_an_event_loop_runs_as_in_a_notebook(client: sgg_rl.Client) -> None:
    assert asyncio.get_running_loop().is_running()
    assert client.rollout.policy().state == "ready"
    assert "triplet_f1" in client.reward.rubrics().terms
    async with sgg_rl.AsyncClient(rollout_url=client.rollout_url, token=TOKEN) as other:
        assert await other.rollout.policy() == client.rollout.policy()


def test_many_threads_ask_one_client(client: sgg_rl.Client) -> None:
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: client.rollout.policy().model, range(32)))
    assert set(found) == {"none"}


def test_errors_are_those_of_the_services(server: LiveServer) -> None:
    with (
        sgg_rl.Client(rollout_url=server.url, token="wrong") as stranger,
        pytest.raises(UnauthorizedError),
    ):
        stranger.rollout.policy()
    nobody = f"http://127.0.0.1:{free_port()}"
    with (
        sgg_rl.Client(rollout_url=nobody, timeout_s=0.2) as client,
        pytest.raises(UnavailableError, match=nobody),
    ):
        client.rollout.policy()
    assert "wrong" not in repr(sgg_rl.Client(token="wrong"))
    with sgg_rl.Client(rollout_url=server.settings.reward.url, token=TOKEN) as other:
        with pytest.raises(
            NotFoundError, match=f"GET {other.rollout_url}/v1/policy answered .* 404"
        ):
            other.rollout.policy()
        asked = other.rollout
    with pytest.raises(InvalidInputError, match=f"client of {other.rollout_url} is closed"):
        asked.policy()


def test_a_client_that_awaits_outlives_its_event_loop(server: LiveServer) -> None:
    client = sgg_rl.AsyncClient(rollout_url=server.url, token=TOKEN)

    async def state() -> str:
        return (await client.rollout.policy()).state

    assert [asyncio.run(state()) for _ in range(2)] == ["ready"] * 2
    asyncio.run(client.aclose())
    with pytest.raises(InvalidInputError, match="is closed"):
        asyncio.run(state())


def test_ctrl_c_ends_the_request_too() -> None:
    started, ended = threading.Event(), threading.Event()

    async def work() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    def waits() -> bool:
        frames = traceback.extract_stack(sys._current_frames()[main])
        return any(frame.name == "result" for frame in frames)

    def interrupt() -> None:
        started.wait(60)
        wait_for("the caller to wait", waits)
        signal.pthread_kill(main, signal.SIGINT)

    main = threading.get_ident()
    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run_here(work())
    assert ended.wait(60)
    thread.join(60)


def test_a_run_that_trains_names_its_servers(server: LiveServer) -> None:
    wait_registered(server)
    run = sgg_rl.connect(server.settings.run.folder)
    assert [record.url for record in run.servers()] == [server.url]
    with run.client() as client:  # the server proves that it is the run's
        assert client.rollout.policy().state == "ready"
        assert client.reward.rubrics().rubrics
    RunFolder(run.folder).finished.touch()
    assert run.is_finished
    assert run.servers() == []
