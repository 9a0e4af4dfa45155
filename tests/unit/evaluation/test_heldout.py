import json
import math
from pathlib import Path

import pytest
from PIL import Image

from evaluation.inference.answers import answered_line, not_asked_line
from evaluation.of_a_run.heldout import (
    HeldoutAnswers,
    Label,
    check_version,
    heldout_samples,
    heldout_scores,
    heldout_summary,
    keep_heldout,
)
from evaluation.reading.lines import GraphLine
from scene_data.templates import answer_text
from scene_data.toy.scenes import SIDE, make_toy
from scene_graph.boxes import RELATIVE_1000
from scene_graph.cleaning import Task
from services.errors import ConflictError, InvalidInputError
from services.run_folder import RunFolder
from services.schemas.rollouts import Completion
from services.settings import Settings
from tests.tagged_pictures import encoded, noise, png_header


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


def test_answers_and_scores_are_kept_by_label(tmp_path: Path) -> None:
    """JSON whatever the scores; those of a version between are in no summary."""
    settings = Settings.model_validate(
        {
            "run": {"name": "run", "root": str(tmp_path)},
            "model": {"path": "none"},
            "data": {"train": "x"},
        }
    )
    folder = tmp_path / "run"
    folder.mkdir()
    files = RunFolder(folder)
    assert heldout_summary(files) == {}

    def keep(label: Label, oldest: int, newest: int, score: float) -> None:
        found = HeldoutAnswers([answered(oldest, newest)], {"policy_version": str(newest)})
        keep_heldout(settings, label, found, {"recall": score})

    keep("before", 0, 0, 0.1)
    keep("now", 4, 5, 0.2)  # of several versions, and twice: the answers of the last one stay
    keep("now", 6, 7, 0.3)
    assert heldout_summary(files) == {"before": {"recall": 0.1}}
    kept = [json.loads(line) for line in files.heldout("now").open()]
    assert [line["policy_versions"] for line in kept] == [[6, 7]]
    keep("after", 8, 8, math.nan)
    assert heldout_summary(files) == {"before": {"recall": 0.1}, "after": {"recall": None}}
    asked = json.loads((folder / "heldout-after.settings.json").read_text())
    assert asked == {"policy_version": "8"}
    assert not files.heldout("now").exists()
    assert not list(folder.glob("*.draft"))


def test_images_that_cannot_be_used_are_left_out_up_to_a_bound(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also damage behind the header, which a server would refuse when it is asked."""
    whole = encoded(Image.fromarray(noise(40, 60)))
    bad = [whole[:2000], png_header(20_000, 10_000), b"no picture"]
    for number, data in enumerate([*bad, whole, whole, bad[0], bad[1], bad[2], whole]):
        (tmp_path / f"{number}.png").write_bytes(data)
    names, row = range(9), {"objects": [{"id": "a.1", "bbox": [0, 0, 9, 9]}], "relationships": []}
    lines = [json.dumps({"image_id": str(i), "image": f"{i}.png", **row}) for i in names]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    tree = {"model": {"path": "none"}, "data": {"train": str(tmp_path / "rows.jsonl")}}
    settings = Settings.model_validate(tree | {"evaluation": {"num_images": 2}})
    assert [sample.image_id for sample in heldout_samples(settings)] == ["3", "4"]
    assert caplog.text.count("is left out") == 3
    settings = Settings.model_validate(tree | {"evaluation": {"num_images": 3}})
    with pytest.raises(InvalidInputError, match="6 held-out images cannot be used"):
        heldout_samples(settings)


TRIPLETS = {
    "triplet_recall",
    "triplet_precision",
    "triplet_f1",
    "mean_predicate_recall",
    "predicate_recall",
}
OBJECTS = {"object_recall", "object_precision", "object_f1", "mean_iou"}
ALWAYS = {"num_images", "failure_rate", "completion_length_mean", "intervals"}


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
        text = answer_text(sample.graph, RELATIVE_1000, width=SIDE, height=SIDE, task=task)
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
    drawn = {"triplet_recall", "triplet_f1", "mean_predicate_recall", "object_f1"}
    assert scores["intervals"].keys() == measured & drawn
    for name, (low, high) in scores["intervals"].items():
        assert low < scores[name] < high == 1, name
    lines[3] = not_asked_line("x", "refused", "too long")  # by the server: nobody's answer
    asked = heldout_scores(settings, samples, lines)
    assert (asked["num_images"], asked["failure_rate"]) == (3, 0)
