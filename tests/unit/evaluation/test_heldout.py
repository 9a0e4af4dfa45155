from pathlib import Path

import pytest

from evaluation.heldout import check_version, heldout_samples, heldout_scores
from evaluation.inference.answers import answered_line
from evaluation.reading.lines import GraphLine
from scene_data.templates import answer_text
from scene_data.toy import SIDE, make_toy
from scene_graph.cleaning import Task
from services.errors import ConflictError
from services.schemas.rollouts import Completion
from services.settings import Settings


def answered(oldest: int, newest: int) -> GraphLine:
    return GraphLine(
        image_id="1",
        width=1,
        height=1,
        objects=[],
        relationships=[],
        policy_versions=(oldest, newest),
    )


def test_answers_of_another_version_are_no_result() -> None:
    check_version([answered(3, 3), answered(3, 3)], 3)
    with pytest.raises(ConflictError, match=r"\[0, 4\] answered, not version 3"):
        check_version([answered(3, 4), answered(0, 3)], 3)


TRIPLETS = {
    "triplet_recall",
    "triplet_precision",
    "triplet_f1",
    "mean_predicate_recall",
    "predicate_recall",
}
OBJECTS = {"object_recall", "object_precision", "object_f1", "mean_iou"}
ALWAYS = {"num_images", "failure_rate", "completion_length_mean"}


@pytest.mark.parametrize(
    ("task", "measured"), [("sgg", TRIPLETS | OBJECTS), ("det", OBJECTS), ("cls", TRIPLETS)]
)
def test_lines_and_scores_of_each_task(task: Task, measured: set[str], tmp_path: Path) -> None:
    make_toy(tmp_path, num_train=1, num_heldout=4)
    heldout = str(tmp_path / "heldout.parquet")
    settings = Settings.model_validate(
        {
            "model": {"path": "none", "box_space": "relative_1000"},
            "data": {"train": heldout, "task": task},
        }
    )
    samples = heldout_samples(settings)
    lines = []
    for sample in samples:
        text = answer_text(sample.graph, "relative_1000", width=SIDE, height=SIDE, task=task)
        answer = Completion(
            text="{" if sample is samples[3] else text,
            token_ids=[1, 2],
            rollout_logprobs=[0.0, 0.0],
            finish_reason="stop",
            policy_versions=[],
        )
        lines.append(answered_line(settings, sample, answer))
    assert [line.status for line in lines] == ["ok"] * 3 + ["invalid_json"]
    assert bool(lines[0].relationships) == (task != "det")
    assert {item.bbox is None for item in lines[0].objects} == {task == "cls"}
    scores = heldout_scores(settings, samples, lines)
    assert set(scores) == ALWAYS | measured
    # Right answers to three images, and none to the fourth.
    for name in measured & {"triplet_recall", "triplet_f1", "object_precision", "object_f1"}:
        assert scores[name] == 0.75
