"""Evaluation beside training, where there is nobody to ask."""

import asyncio
import json
import logging
import os
from pathlib import Path

import pytest

from evaluation.inference.progress import Progress
from evaluation.of_a_run import during
from evaluation.of_a_run.during import DuringTraining
from evaluation.of_a_run.progress_file import (
    EvaluationProgress,
    read_evaluation_progress,
    shown_progress,
)
from scene_data.toy.scenes import make_toy
from services.run_folder import RunFolder
from services.settings import Settings
from tests.processes import wait_for


@pytest.fixture
def evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DuringTraining:
    """Every second version of a run whose Redis is not there."""
    monkeypatch.setattr(during, "_SERVED_S", 0.3)
    make_toy(tmp_path, num_train=2, num_heldout=2)
    return DuringTraining(
        Settings.model_validate(
            {
                "model": {"path": "none", "box_space": "relative_1000"},
                "data": {"train": str(tmp_path / "heldout.parquet"), "template": "toy"},
                "redis": {"url": "redis://127.0.0.1:1/0"},
                "evaluation": {"every": 2},
            }
        )
    )


def test_a_failing_evaluation_is_told_without_a_trace_and_counted(
    evaluation: DuringTraining, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="evaluation.of_a_run.during")
    for step in (0, 1, 2, 3, 4, 5):
        evaluation.begin(step)  # of version 0 it would not be alone
        if step in (3, 5):
            wait_for("its end", lambda n=step // 2: ended(evaluation) == n)  # type: ignore[misc]
    assert evaluation.counts() == {"evaluations_skipped": 0, "evaluations_failed": 2}
    told = "an evaluation failed: no rollout server served version {} in 0.3 s"
    assert [record.message for record in caplog.records] == [told.format(2), told.format(4)]
    assert not any(record.exc_info for record in caplog.records)
    evaluation.close()


def ended(evaluation: DuringTraining) -> int:
    assert evaluation.results() == []
    return evaluation.counts()["evaluations_failed"]


def test_one_at_a_time_and_the_end_waits_for_the_last(evaluation: DuringTraining) -> None:
    evaluation.begin(2)
    evaluation.begin(4)
    evaluation.begin(5)
    assert evaluation.results() == []
    assert evaluation.counts() == {"evaluations_skipped": 1, "evaluations_failed": 0}
    assert evaluation.finish(5) == []  # evaluated though it is no second version
    assert evaluation.counts() == {"evaluations_skipped": 1, "evaluations_failed": 2}
    evaluation.close()


def test_closing_gives_up_what_goes_on(evaluation: DuringTraining) -> None:
    evaluation.begin(2)
    evaluation.close()


def test_how_far_an_evaluation_is_can_be_read_by_others(tmp_path: Path) -> None:
    """A file of a trainer that was killed says nothing, nor does one that is no such file."""
    folder = RunFolder(tmp_path)

    async def evaluate() -> None:
        async with shown_progress(folder, 40, "now", Progress(total=500, done=120)):
            await asyncio.sleep(0)
            assert read_evaluation_progress(folder) == EvaluationProgress(40, "now", 120, 500)
            os.utime(folder.evaluating, (1, 1))
            assert read_evaluation_progress(folder) is None

    asyncio.run(evaluate())
    assert not list(tmp_path.iterdir())
    for text in ("{", "[]", json.dumps({"step": 1, "label": "now", "done": "x", "total": 2})):
        folder.evaluating.write_text(text)
        assert read_evaluation_progress(folder) is None
