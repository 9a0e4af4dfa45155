"""Runs of the trainer on the session's rollout server."""

import json
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.run_folder.records import record_lines
from services.schemas.weights import Transport
from services.settings import Settings, dump_settings
from tests.e2e.conftest import TrainingServices

LOGPROB_TOLERANCE = 2e-3
"""Between vLLM and transformers in float32, for the same weights and tokens."""


@dataclass
class Run:
    settings: Settings
    config: Path
    folder: Path
    log: Path

    def rows(self, name: str) -> list[dict[str, Any]]:
        file = self.folder / name
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def rollouts(self, step: int) -> list[list[dict[str, Any]]]:
        """Groups of each rank."""
        files = sorted((self.folder / "rollouts").glob(f"step-{step:06d}.rank*.jsonl.gz"))
        return [[json.loads(line) for line in record_lines(file)] for file in files]


def logprob_gaps(run: Run, steps: Iterable[int], *, stale: bool) -> list[float]:
    """Between trainer and sampler, of each token of completions from one version alone.

    Args:
        run: That has ended.
        steps: Of it.
        stale: Whether to take those of older versions than the step's, or of its own.
    """
    gaps = []
    for step in steps:
        for group in (group for rank in run.rollouts(step) for group in rank):
            answers = zip(group["rollout"]["completions"], group["policy_logprobs"], strict=True)
            for completion, ours in answers:
                span, *more = completion["policy_versions"]
                if not more and (span["policy_version"] < step) == stale:
                    theirs = completion["rollout_logprobs"]
                    gaps += [abs(a - b) for a, b in zip(ours, theirs, strict=True)]
    return gaps


def lay_out(
    services: TrainingServices,
    root: Path,
    transport: Transport,
    *,
    algorithm: dict[str, object] | None = None,
    evaluation: dict[str, object] | None = None,
    zero_stage: int = 2,
    data: Path | None = None,
    **trainer: object,
) -> Run:
    """The settings of a run that uses the session's server; its name is the server's.

    Args:
        services: Of the session.
        root: Gets the run's folder.
        transport: Of weights.
        algorithm: That section, where it is not the default.
        evaluation: The same.
        zero_stage: Of DeepSpeed.
        data: Training set, where it is not the services' toy scenes.
        trainer: Fields of that section.
    """
    server = services.server
    base = server.settings.model_dump(mode="json", exclude_none=True)
    base["run"]["root"] = str(root)
    base["data"] = {
        "train": str(data or services.toy / "train.parquet"),
        "heldout": str(services.toy / "heldout.parquet"),
        "template": "toy",
    }
    base["evaluation"] = {"max_tokens": 64} | (evaluation or {})
    base["reward"] = {"url": services.reward_url}
    base["sampling"] = {"max_tokens": 64}
    base["algorithm"] = algorithm or {}
    base["deepspeed"] = {"zero_stage": zero_stage}
    base["weights"] = {"transport": transport}
    base["trainer"] = {
        "groups_per_step": 4,
        "group_size": 4,
        "tokens_per_micro_batch": 400,
        "learning_rate": 1e-3,
        "wait_timeout_s": 120,
        **trainer,
    }
    settings = Settings.model_validate(base)
    # The server looks for images in its own run's folder.
    settings.run.folder.mkdir(parents=True, exist_ok=True)
    settings.run.files.folder_id.write_text("the session")  # whose name they all have in Redis
    server.settings.run.files.images.mkdir(parents=True, exist_ok=True)
    images = settings.run.folder / "images"
    if not images.exists():
        images.symlink_to(server.settings.run.files.images)
    config = root / "trainer.toml"
    config.write_text(dump_settings(settings))
    return Run(settings, config, settings.run.folder, root / "trainer.log")


def wait_for_step(run: Run, step: int, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 300
    while not any(row["step"] >= step for row in run.rows("ledger.jsonl")):
        assert process.poll() is None, run.log.read_text()[-4000:]
        assert time.monotonic() < deadline, run.log.read_text()[-4000:]
        time.sleep(0.1)
