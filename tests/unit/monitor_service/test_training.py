"""The trainer's files, followed through steps and a resume."""

import time
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import generate_latest

from monitor_service.exporter import RunCollector
from monitor_service.training import Training
from services.run_folder import RunFolder
from services.settings import Settings
from services.telemetry import new_registry
from trainer.ranks.watch import RankWatch, watched
from trainer.records.step_lines import StepLines


@pytest.fixture
def lines(tmp_path: Path) -> StepLines:
    return StepLines(tmp_path / "metrics.jsonl")


def row(step: int, at: float, **changes: Any) -> dict[str, Any]:
    return {"step": step, "time": at, "num_tokens": 100, "num_groups": 8, "num_stale": 1} | changes


def text_of(training: Training) -> str:
    settings = Settings.model_validate(
        {
            "run": {"name": training.folder.path.name, "root": str(training.folder.path.parent)},
            "model": {"path": "x"},
            "data": {"train": "x"},
        }
    )
    registry = new_registry()
    registry.register(RunCollector(settings, training))
    return generate_latest(registry).decode().replace(f'run="{settings.run.name}"', "run")


def test_counters_take_a_step_once_and_nothing_back(tmp_path: Path, lines: StepLines) -> None:
    before = time.time() - 1000
    for step in range(3):
        lines.append(row(step, before + step))
    training = Training(RunFolder(tmp_path))
    training.look()
    assert training.num_tokens == 0  # done before the monitor was there
    now = time.time() + 1
    lines.append(row(3, now))
    lines.append(row(4, now + 1))
    training.look()
    assert (training.num_tokens, training.groups["stale"]) == (200, 2)
    lines.cut_to(3)
    training.look()
    assert training.num_tokens == 200
    assert training.last["step"] == 2
    lines.append(row(3, now + 5))
    training.look()
    assert (training.num_tokens, training.groups["trained"]) == (300, 24)


def test_the_usual_time_between_steps_is_no_pause(tmp_path: Path, lines: StepLines) -> None:
    training = Training(RunFolder(tmp_path))
    training.look()
    assert training.step_interval_s is None
    for step, at in enumerate([0.0, 10, 20, 5000, 5010]):
        lines.append(row(step, at))
    training.look()
    assert training.step_interval_s == 10


def test_what_rank_0_does(tmp_path: Path) -> None:
    training = Training(RunFolder(tmp_path))
    training.look()
    assert training.beat is None
    with watched(RankWatch(tmp_path / "ranks", rank=0, size=1, limit_s=60)) as watch:
        watch.enter("train", 7)
        training.look()
        assert training.beat is not None
        assert training.beat.phase == "train"
        assert abs(training.beat.at - time.time()) < 60
    (tmp_path / "ranks/rank-0.json").write_text("[]")
    training.look()
    assert training.beat is None


def test_every_number_of_a_line_gets_a_standard_name(tmp_path: Path, lines: StepLines) -> None:
    lines.append(
        row(
            5,
            1000.5,
            loss=float("nan"),
            tokens_per_s=1500,
            preparation_s=0.25,
            sampler_idle_fraction=None,
            reward_terms={"edge": 0.5},
            phases_s={"wait": 2},
        )
    )
    training = Training(RunFolder(tmp_path))
    training.look()
    text = text_of(training)
    for sample in (
        "sgg_trainer_step{run} 5.0",
        "sgg_trainer_last_timestamp_seconds{run} 1000.5",
        "sgg_trainer_tokens_per_second{run} 1500.0",
        "sgg_trainer_preparation_seconds{run} 0.25",
        'sgg_trainer_reward_terms{run,term="edge"} 0.5',
        'sgg_trainer_phases_seconds{phase="wait",run} 2.0',
        "sgg_redis_up{run} 0.0",
    ):
        assert f"{sample}\n" in text
    assert "sampler_idle_fraction" not in text
    assert "sgg_trainer_loss" not in text, "what is not finite is null in the line"
    assert "sgg_policy_version" not in text


def test_a_run_without_a_folder_is_a_run_all_the_same(tmp_path: Path) -> None:
    training = Training(RunFolder(tmp_path / "later"))
    training.look()
    assert 'sgg_trainer_groups_total{outcome="trained",run} 0.0' in text_of(training)
