"""Folders of runs as trainers leave them, made in a moment."""

import json
import math
import os
import random
import time
from pathlib import Path
from typing import Any

from services.run_folder import RunFolder
from services.settings import dump_settings, load_settings

PACE_S = 40.0


def make_run(
    path: Path, *, steps: int, total: int, seed: int = 0, ended_s: float = 0.0, **rank: Any
) -> RunFolder:
    """A run of the demo's settings.

    Args:
        path: The folder to make.
        steps: Rows of `metrics.jsonl`.
        total: Steps of the whole run.
        seed: Of the settings, and of the noise.
        ended_s: Seconds since it last wrote; 0 for a live one.
        rank: Fields of `ranks/rank-0.json`, such as `failed`.
    """
    files = RunFolder(path)
    for folder in (path, files.logs, files.ranks):
        folder.mkdir(parents=True, exist_ok=True)
    words = [f"run.seed={seed}", f"trainer.num_steps={total}"]
    files.config.write_text(dump_settings(load_settings(Path("demo"), words, {})))
    rng, now = random.Random(seed), time.time() - ended_s
    with files.metrics.open("w") as stream:
        for step in range(steps):
            at = now - PACE_S * (steps - step - 1)
            stream.write(json.dumps(step_row(step, total, at, rng)) + "\n")
    every = max(1, total // 20)
    files.evaluations.write_text(
        "".join(
            json.dumps(evaluation_row(step, total, now)) + "\n" for step in range(0, steps, every)
        )
    )
    beat = {"phase": "train", "step": steps, "done": False, "failed": None} | rank
    (files.ranks / "rank-0.json").write_text(json.dumps(beat))
    (files.logs / "trainer.log").write_text(
        "2026-11-29 03:59:00,000 INFO trainer: <script>document.title = 'run'</script>\n"
    )
    for file in (*files.ranks.iterdir(), *files.logs.iterdir()):
        os.utime(file, (now, now))
    return files


def step_row(step: int, total: int, at: float, rng: random.Random) -> dict[str, Any]:
    """A row of `metrics.jsonl`, of a run that learns."""
    learnt = 1 - math.exp(-3 * step / total)

    def noisy(value: float, noise: float) -> float:
        return max(0.0, value + rng.gauss(0, noise))

    return {
        "step": step,
        "num_steps": total,
        "policy_version": step,
        "time": at,
        "reward_mean": 1 + 6 * learnt + rng.gauss(0, 0.35),
        "reward_std": 1.2,
        "reward_terms": {"format": 0.8 + 0.19 * learnt, "edge": noisy(0.3 * learnt, 0.03)},
        "failure_rate": noisy(0.3 * (1 - learnt), 0.02),
        "failures": {"no_answer": 0.1 * (1 - learnt), "invalid_json": 0.2 * (1 - learnt)},
        "truncated_rate": noisy(0.09, 0.02),
        "completion_length_mean": 180 + 60 * learnt,
        "completion_length_max": 256,
        "groups_without_spread": int(9 - 5 * learnt),
        "num_groups": 24,
        "num_stale": 0,
        "num_dead": 0,
        "num_replaced": 0,
        "num_servers": 2,
        "loss": rng.gauss(0, 0.01),
        "grad_norm": noisy(1.5, 0.4),
        "entropy": 1.35 - 1.1 * learnt,
        "ratio_mean": 1 + rng.gauss(0, 0.004),
        "clip_fraction": noisy(0.02, 0.01),
        "mismatch_kl": rng.gauss(0, 0.002),
        "mismatch_k3": abs(rng.gauss(0, 0.002)),
        "policy_lag_mean": noisy(0.6, 0.1),
        "policy_lag_max": 1,
        "learning_rate": 1e-6 * (1 - step / total),
        "tokens_per_s": 900 + rng.gauss(0, 30),
        "trainer_idle_fraction": noisy(0.04, 0.02),
        "sampler_idle_fraction": noisy(0.1, 0.02),
        "phases_s": {"wait": 2.0, "prepare": 1.0, "train": 30.0, "publish": 4.0, "record": 3.0},
    }


def evaluation_row(step: int, total: int, at: float) -> dict[str, Any]:
    """A row of `evaluations.jsonl`, with the intervals of its measures."""
    f1 = 0.05 + 0.4 * (1 - math.exp(-3 * step / total))
    return {
        "step": step,
        "time": at,
        "triplet_f1": f1,
        "triplet_recall": f1 + 0.05,
        "object_f1": f1 + 0.2,
        "mean_predicate_recall": 0.7 * f1,
        "intervals": {"triplet_f1": [f1 - 0.03, f1 + 0.03]},
    }


def write_events(files: RunFolder, *events: tuple[int, str, str]) -> None:
    """`events.jsonl` with step, kind and text of each."""
    now = time.time()
    lines = [
        {"schema": 1, "time": now + step, "step": step, "kind": kind, "text": text}
        for step, kind, text in events
    ]
    files.events.write_text("".join(json.dumps(line) + "\n" for line in lines))
