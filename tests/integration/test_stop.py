"""A trainer that is told to stop while it waits, with no rollout server alive: nothing is lost."""

import json
import os
import shutil
import signal
import subprocess
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from scene_data.sampler import EpochSampler
from scene_data.toy.scenes import make_toy
from services.host.ports import free_port
from services.run_folder.records import record_lines
from services.settings import Settings, dump_settings, load_settings
from tests.processes import ROOT, sgg_process, wait_for, wait_ready
from trainer.not_finite import MAX_SKIPPED

STEPS = 5
GROUPS = 2
NUM_ROWS = 16
LONG_S = 240.0


class Run:
    """A run of two ranks that writes no checkpoint before its end, unless it is told to stop."""

    def __init__(self, root: Path, redis_url: str) -> None:
        make_toy(root, num_train=NUM_ROWS, num_heldout=2)
        pixels = {"min_pixels": 12544, "max_pixels": 12544}
        self.settings = Settings.model_validate(
            {
                "run": {"name": f"stop-{uuid.uuid4().hex[:8]}", "root": str(root)},
                "model": {"path": str(ROOT / "assets/toy-start"), "dtype": "float32", **pixels},
                "data": {
                    "train": str(root / "train.parquet"),
                    "heldout": str(root / "heldout.parquet"),
                    "template": "toy",
                },
                "evaluation": {"max_tokens": 48},
                "redis": {"url": redis_url, "lease_s": 3},
                "reward": {"url": f"http://127.0.0.1:{free_port()}"},
                "rollout": {
                    "url": f"http://127.0.0.1:{free_port()}",
                    "engine": "fake",
                    "fake_tokens_per_s": 200,
                    "max_model_len": 512,
                },
                "sampling": {"max_tokens": 48},
                "weights": {"transport": "disk"},
                "trainer": {
                    "num_steps": STEPS,
                    "num_ranks": 2,
                    "groups_per_step": GROUPS,
                    "group_size": 2,
                    "max_policy_lag": 0,
                    "checkpoint_every": 100,
                    "wait_timeout_s": LONG_S,
                },
            }
        )
        self.folder = self.settings.run.folder
        self.log = root / "trainer.log"
        self.config = root / "run.toml"
        self.config.write_text(dump_settings(self.settings))

    def start(self, *arguments: str) -> "AbstractContextManager[subprocess.Popen[bytes]]":
        return sgg_process(self.log, *arguments, "--config", str(self.config))

    def ledger(self) -> list[dict[str, Any]]:
        file = self.folder / "ledger.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def rollouts(self, step: int) -> list[dict[str, Any]]:
        """A step's groups; `json` alone would read NaN, which is no JSON."""
        files = sorted((self.folder / "rollouts").glob(f"step-{step:06d}.rank*.jsonl.gz"))
        lines = [line for file in files for line in record_lines(file)]
        return [json.loads(line, parse_constant=pytest.fail) for line in lines]

    def heldout_versions(self, label: str) -> set[int]:
        file = self.folder / f"heldout-{label}.jsonl"
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        return {version for row in rows for version in row["policy_versions"]}

    def phases(self) -> list[tuple[str, int]]:
        beats = [json.loads(f.read_text()) for f in (self.folder / "ranks").glob("rank-?.json")]
        return [(beat["phase"], beat["step"]) for beat in beats]

    def checkpoints(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "checkpoints").glob("*"))

    def until(
        self,
        what: str,
        condition: Callable[[], bool],
        process: "subprocess.Popen[bytes]",
    ) -> None:
        wait_for(what, lambda: condition() or process.poll() is not None, LONG_S)
        assert process.poll() is None, self.log.read_text()[-4000:]


@pytest.fixture
def run(redis_url: str, tmp_path: Path) -> Iterator[Run]:
    run = Run(tmp_path, redis_url)
    with run.start("serve", "reward") as reward:
        wait_ready(run.settings.reward.url, reward, run.log)
        yield run


def test_a_stop_while_no_server_is_alive_keeps_every_step(run: Run) -> None:
    with run.start("train", "--resume") as trainer:
        with run.start("serve", "rollout") as server:
            run.until("two steps", lambda: len(run.ledger()) >= 2, trainer)
            server.kill()
        run.until("the wait", lambda: {p for p, _ in run.phases()} == {"wait"}, trainer)
        num_done = len(run.ledger())
        trainer.send_signal(signal.SIGUSR1)
        assert trainer.wait(60) == os.EX_TEMPFAIL, run.log.read_text()[-4000:]
    assert 2 <= num_done < STEPS
    assert run.checkpoints() == [f"step-{num_done:06d}"]
    assert "stopped with a checkpoint: go on with `--resume`" in run.log.read_text()
    with run.start("serve", "rollout"), run.start("train", "--resume") as trainer:
        assert trainer.wait(LONG_S) == 0, run.log.read_text()[-4000:]
    rows = run.ledger()
    assert [row["step"] for row in rows] == list(range(STEPS))
    order = EpochSampler(NUM_ROWS, seed=0)
    expected = [
        f"{run.settings.run.name}-e0-r{order.at(position)[1]}" for position in range(GROUPS * STEPS)
    ]
    assert [name for row in rows for name in row["group_ids"]] == expected
    assert not (run.folder / "rolled_back.jsonl").exists(), "no step was done twice"
    left = {path.relative_to(run.folder).as_posix() for path in run.folder.rglob("*")}
    assert left >= {"config.toml", "plots/learning.png", "report.html", "checkpoint/config.json"}
    assert "evaluating.json" not in left
    assert "Version 5 answered, on 1 server." in (run.folder / "report.html").read_text()
    assert "no report" not in run.log.read_text()
    assert load_settings([run.folder / "config.toml"]).trainer == run.settings.trainer
    # Whatever `evaluation.every` is; before is version 0, which no server serves after the resume.
    assert run.heldout_versions("before") == {0}
    assert run.heldout_versions("after") == {STEPS}
    assert json.loads((run.folder / "summary.json").read_text()).keys() == {"before", "after"}


def test_a_policy_without_finite_numbers_is_never_published_and_ends_the_run(run: Run) -> None:
    model = run.folder.parent / "model"
    shutil.copytree(ROOT / "assets/toy-start", model)
    tensors = load_file(model / "model.safetensors")
    next(iter(tensors.values()))[:] = torch.nan
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    broken = run.settings.model.model_copy(update={"path": str(model)})
    run.config.write_text(dump_settings(run.settings.model_copy(update={"model": broken})))
    with run.start("serve", "rollout"), run.start("train") as trainer:
        assert trainer.wait(LONG_S) == 1, run.log.read_text()[-4000:]
    said = run.log.read_text()
    assert f"step 0 was skipped {MAX_SKIPPED} times in a row" in said
    names = [row["rollout"]["group_id"] for row in run.rollouts(0)]
    assert len(names) == GROUPS
    assert f"log-probabilities of {', '.join(names)} are not finite" in said
    assert run.ledger() == []
    assert run.checkpoints() == []
    assert not list((run.folder / "weights").glob("*-v1*"))
