"""`sgg-rl infer` on real rollout servers with the fake engine, which are killed, and so is it."""

import asyncio
import json
import re
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from evaluation.inference.folder import inference
from evaluation.inference.progress import Progress
from rollout_service.fake.engine import FakeEngine
from scene_data.dataset import open_dataset
from scene_data.toy.scenes import make_toy
from services.errors import ConflictError, InvalidInputError
from services.host.ports import free_port
from services.settings import Settings, dump_settings
from tests.live_servers import registered, serving
from tests.processes import sgg_process, wait_for, wait_ready

NUM_IMAGES = 120
NUM_SERVERS = 3


@dataclass
class Servers:
    """Processes of one run, and what a user asks them with."""

    stack: ExitStack
    folder: Path
    settings: Settings
    config: Path
    data: Path

    def __post_init__(self) -> None:
        self.urls: list[str] = []
        self.processes: list[Any] = []

    def start(self, number: int) -> None:
        for _ in range(number):
            url = f"http://127.0.0.1:{free_port()}"
            log = self.folder / f"server-{len(self.urls)}.log"
            arguments = ["serve", "rollout", "--config", str(self.config)]
            port = ["--port", url.rpartition(":")[2]]
            self.processes.append(self.stack.enter_context(sgg_process(log, *arguments, *port)))
            self.urls.append(url)
        for url, process in zip(self.urls, self.processes, strict=True):
            if process.poll() is None:
                wait_ready(url, process, self.folder / "server-0.log")

    def infer(self, name: str, *arguments: str) -> list[str]:
        output = str(self.folder / name)
        return ["infer", str(self.data), "--output", output, "-c", str(self.config), *arguments]

    def predictions(self, name: str) -> Path:
        return self.folder / name / "predictions.jsonl"

    def groups(self) -> list[int]:
        pages = [httpx.get(f"{url}/metrics", trust_env=False).text for url in self.urls]
        found = [re.search(r'groups_total\{outcome="sampled"\} (\d+)', page) for page in pages]
        return [int(match[1]) if match else 0 for match in found]


@pytest.fixture(scope="module")
def servers(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    folder = tmp_path_factory.mktemp("inference")
    make_toy(folder / "toy", num_train=1, num_heldout=NUM_IMAGES)
    settings = Settings.model_validate(
        {
            "run": {"name": "inference", "root": str(folder)},
            "model": {"path": "none", "box_space": "relative_1000"},
            "data": {"train": "unused", "template": "toy"},
            "redis": {"url": redis_url},
            "rollout": {"engine": "fake", "fake_tokens_per_s": 4000, "max_num_seqs": 8},
            "trainer": {"wait_timeout_s": 2},
        }
    )
    config = folder / "run.toml"
    config.write_text(dump_settings(settings))
    with ExitStack() as stack:
        running = Servers(stack, folder, settings, config, folder / "toy/heldout.parquet")
        running.start(NUM_SERVERS)
        wait_for("records", lambda: len(registered(settings)) == NUM_SERVERS)
        yield running


def size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def ended(servers: Servers, *arguments: str) -> tuple[int, str]:
    log = servers.folder / "infer.log"
    log.unlink(missing_ok=True)
    with sgg_process(log, *arguments) as process:
        return process.wait(120), log.read_text()


@pytest.fixture(scope="module")
def whole(servers: Servers) -> bytes:
    """What an undisturbed inference writes, by the servers that the run has registered."""
    code, log = ended(servers, *servers.infer("whole"))
    assert code == 0, log
    assert f"{NUM_IMAGES}/{NUM_IMAGES} images" in log
    return servers.predictions("whole").read_bytes()


def test_every_image_has_its_line_in_order_and_servers_share_them(
    servers: Servers, whole: bytes
) -> None:
    lines = [json.loads(line) for line in whole.splitlines()]
    dataset = open_dataset(servers.data)
    assert [line["image_id"] for line in lines] == [sample.image_id for sample in dataset]
    statuses = Counter(line.get("status", "ok") for line in lines)
    assert statuses["ok"] > statuses["invalid_json"] > 0
    assert all(line["objects"] for line in lines if "status" not in line)
    settings = json.loads((servers.folder / "whole/predictions.settings.json").read_text())
    assert settings["result"]["statuses"] == statuses
    assert settings["result"]["tokens_per_s"] > 0
    counts = servers.groups()
    assert sum(counts) == NUM_IMAGES
    assert max(counts) - min(counts) <= NUM_IMAGES / 10


def test_a_killed_inference_goes_on_to_the_same_file(servers: Servers, whole: bytes) -> None:
    file = servers.predictions("killed")
    with sgg_process(servers.folder / "killed.log", *servers.infer("killed")) as process:
        wait_for("lines", lambda: size(file) > len(whole) // 4)
        process.kill()
    file.write_bytes(file.read_bytes()[:-7])
    assert size(file) < len(whole)
    code, text = ended(servers, *servers.infer("killed"))
    assert code == 0, text
    assert "of them earlier" in text
    assert file.read_bytes() == whole


def test_a_killed_server_costs_nothing(servers: Servers, whole: bytes) -> None:
    file, log = servers.predictions("survived"), servers.folder / "survived.log"
    with sgg_process(log, *servers.infer("survived")) as process:
        wait_for("lines", lambda: size(file) > len(whole) // 4)
        servers.processes[1].kill()
        assert process.wait(60) == 0, log.read_text()
    assert file.read_bytes() == whole
    assert f"{servers.urls[1]} is left out (2 of 3 go on)" in log.read_text()
    assert "servers 2/3" in log.read_text()


def test_other_settings_are_refused(servers: Servers, whole: bytes) -> None:
    other = alone(servers.settings, evaluation={"temperature": 1.0})
    with pytest.raises(ConflictError, match=r"temperature = 0.0, and now it is 1.0"):
        infer(servers.folder / "whole", other, servers.urls[2], servers.data)
    assert servers.predictions("whole").read_bytes() == whole


def test_a_server_of_its_own_ends_with_it(servers: Servers, whole: bytes) -> None:
    file, log = servers.predictions("own"), servers.folder / "own.log"
    with sgg_process(log, *servers.infer("own", "--model", "none")) as process:
        wait_for("lines", lambda: size(file) > len(whole) // 4)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    assert f"of {NUM_IMAGES} images done: the same command goes on from there" in log.read_text()
    (url,) = re.findall(r"through (http\S+),", log.read_text())
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/healthz", trust_env=False)
    assert "Traceback" not in log.read_text()
    assert whole.startswith(file.read_bytes())


def test_without_servers_it_says_how_to_go_on(servers: Servers, whole: bytes) -> None:
    file, log = servers.predictions("alone"), servers.folder / "alone.log"
    url = servers.urls[0]
    with sgg_process(log, *servers.infer("alone", "--server", url)) as process:
        wait_for("lines", lambda: size(file) > len(whole) // 8)
        servers.processes[0].kill()
        assert process.wait(60) == 1
    assert re.search(f"no rollout server answered for 2 s: {url}.*repeat", log.read_text())
    assert whole.startswith(file.read_bytes())


def fake(settings: Settings, **engine: Any) -> Any:
    return serving(
        settings, FakeEngine(**({"tokens_per_s": 100_000, "max_model_len": 3072} | engine))
    )


def infer(folder: Path, settings: Settings, url: str, data: Path) -> list[dict[str, Any]]:
    dataset = open_dataset(data)
    progress = Progress(total=len(dataset))
    with inference(folder, dataset, progress) as work:
        asyncio.run(work.ask(settings, [url]))
    lines = (folder / "predictions.jsonl").read_bytes().splitlines()
    assert progress.done == len(lines)
    return [json.loads(line) for line in lines]


def alone(settings: Settings, **sections: Any) -> Settings:
    """Without Redis."""
    whole = settings.model_dump(mode="json", exclude_none=True)
    whole["redis"]["url"] = "redis://127.0.0.1:1/0"
    return Settings.model_validate(whole | sections)


def test_what_could_not_be_asked_has_a_line_and_is_asked_again(
    servers: Servers, tmp_path: Path
) -> None:
    settings = alone(servers.settings)
    rows = [
        {
            "image_id": f"i{n}",
            "image": f"{n}.png",
            "objects": [{"id": "man.1", "bbox": [0, 0, 9, 9]}],
            "relationships": [],
        }
        for n in range(3)
    ]
    data = tmp_path / "rows.json"
    data.write_text(json.dumps(rows))
    for n, sample in zip((0, 2), open_dataset(servers.data), strict=False):
        (tmp_path / f"{n}.png").write_bytes(sample.image_bytes)
    with fake(settings, max_model_len=20) as server:
        lines = infer(tmp_path / "out", settings, server.url, data)
    assert [line["status"] for line in lines] == ["refused", "unreadable", "refused"]
    assert [line["width"] for line in lines] == [112, 0, 112]
    with fake(settings) as server:
        lines = infer(tmp_path / "out", settings, server.url, data)
        assert [line.get("status") == "unreadable" for line in lines] == [False, True, False]
        (tmp_path / "1.png").write_bytes((tmp_path / "0.png").read_bytes())
        lines = infer(tmp_path / "out", settings, server.url, data)
    assert [line["image_id"] for line in lines] == ["i0", "i1", "i2"]
    assert not {"refused", "unreadable"} & {line.get("status") for line in lines}


def test_more_than_a_few_refusals_end_it(servers: Servers, tmp_path: Path) -> None:
    settings = alone(servers.settings)
    with (
        fake(settings, max_model_len=20) as server,
        pytest.raises(
            InvalidInputError, match=r"(?s)more than 5 of 120 images.*the model takes 20"
        ),
    ):
        infer(tmp_path, settings, server.url, servers.data)


def test_failures_are_asked_again_under_the_schema_and_keep_their_first_status(
    servers: Servers, tmp_path: Path
) -> None:
    with fake(alone(servers.settings)) as server:
        found = {
            constrain: infer(
                tmp_path / constrain,
                alone(servers.settings, evaluation={"constrain": constrain}),
                server.url,
                servers.data,
            )
            for constrain in ("never", "failures", "all")
        }
    free = [line.get("status", "ok") for line in found["never"]]
    assert not any("unconstrained_status" in line for line in found["never"])
    failures = [line.get("unconstrained_status") for line in found["failures"]]
    assert failures == [None if status == "ok" else status for status in free]
    assert [line["unconstrained_status"] for line in found["all"]] == free
    assert all(line["unconstrained_text"] for line in found["all"])
