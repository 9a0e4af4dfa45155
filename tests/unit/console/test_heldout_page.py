"""What the held-out page says of scores and images."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from console import heldout
from console.heldout import Answered, images_data, read_scores
from console.runs import Run
from evaluation.scoring.compare import compare
from scene_data.dataset import open_dataset
from scene_data.toy.scenes import make_toy
from tests.report_examples import evaluation_of


@pytest.mark.parametrize(
    ("gains", "most", "said"),
    [
        ([0.1, 0.0, 0.3, 0.2], 9, "No image lost F1 since {}. Those that gained least come first."),
        (
            [0.1, -0.1, -0.2, 0.2],
            3,
            "2 of 4 images lost F1 since {}. Those that lost most come first; here are 3 of 4.",
        ),
        (None, 3, "Those that have the least F1 come first; here are 3 of 4."),
    ],
)
def test_only_images_that_lost_are_said_to_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gains: list[float] | None, most: int, said: str
) -> None:
    monkeypatch.setattr(heldout, "MAX_IMAGES", most)
    make_toy(tmp_path / "toy", num_train=1, num_heldout=4)
    samples = list(open_dataset(tmp_path / "toy/heldout.parquet"))
    found = evaluation_of(samples, tmp_path / "run", "now")
    before = replace(found, images=[replace(image, f1=0.5) for image in found.images])
    now = replace(
        found,
        images=[
            replace(image, f1=0.5 + gain)
            for image, gain in zip(found.images, gains or [0.0] * 4, strict=True)
        ],
    )
    compared = compare(before, now) if gains else None
    answered = Answered(result=now, compared=compared, image_bytes=lambda _: None)
    data, text = images_data(Run("toys", tmp_path), answered)
    assert text == said.format("the start of training")
    worst = sorted(range(4), key=lambda i: (gains or [0.0] * 4)[i])[:most]
    assert [image["id"] for image in data["images"]] == [now.images[i].image_id for i in worst]


def test_a_row_whose_step_is_no_number_is_none(tmp_path: Path) -> None:
    run = Run("toys", tmp_path)
    rows = [{"step": step, "triplet_f1": 0.5} for step in (True, "4", None, 3, False)]
    run.files.evaluations.write_text("".join(json.dumps(row) + "\n" for row in rows))
    scores = read_scores(run, "sgg")
    assert scores is not None
    assert [row["step"] for row in scores.rows] == [3]
    assert [step for step, *_ in scores.points] == [3]
