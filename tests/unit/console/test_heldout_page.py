"""What the held-out page says of scores and images."""

import json
import random
import re
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from console import heldout
from console.app import create_console
from console.heldout import Answered, images_data, read_scores
from console.runs import Run
from evaluation.report.tables import NONE
from evaluation.scoring.compare import compare
from scene_data.dataset import open_dataset
from scene_data.toy.scenes import make_toy
from services.settings import dump_settings, load_settings
from tests.console_runs import make_run
from tests.report_examples import evaluation_of, spoilt_line
from tests.unit.cli.test_evaluate import Command, sgg_rl  # noqa: F401 - a fixture


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


def test_two_runs_are_paired_as_the_command_pairs_them(
    tmp_path: Path,
    sgg_rl: Command,  # noqa: F811
) -> None:
    make_toy(tmp_path / "toy", num_train=1, num_heldout=16)
    data = tmp_path / "toy/heldout.parquet"
    samples = list(open_dataset(data))
    for name, rate, kept in (("early", 0.7, samples[:15]), ("late", 0.3, samples)):
        files = make_run(tmp_path / "runs" / name, steps=9, total=9, ended_s=900)
        settings = load_settings([files.config], [f'data.heldout="{data}"'], {})
        files.config.write_text(dump_settings(settings))
        rng = random.Random(name)
        lines = [json.dumps(spoilt_line(sample, rng, rate)) for sample in kept]
        files.heldout("after").write_text("\n".join(lines) + "\n")
        words = ("--reference", data, "--split", "toy", "--images", 0)
        assert sgg_rl("evaluate", files.heldout("after"), *words, "-o", tmp_path / name) == 0
    folders = (tmp_path / "early", tmp_path / "late")
    assert sgg_rl("evaluate", "--compare", *folders, "-o", tmp_path / "both") == 0
    compared = json.loads((tmp_path / "both/comparison.json").read_text())

    client = TestClient(create_console(tmp_path / "runs"), base_url="http://localhost")
    page = client.get("/compare", params={"run": ["early", "late"]}).text
    (part,) = re.findall(r'hx-get="(/compare/heldout[^"]+)"', page)
    table = unescape(client.get(unescape(part)).text)
    assert "late, after training, minus early, after training" in table
    assert f"On the {compared['num_images']} images" in table
    rows = re.findall(r"<tr class=[^>]*>(.*?)</tr>", table)
    shown = sorted(re.findall(r'number">([^<]*)<', row) for row in rows)
    assert shown == sorted(map(cells, compared["differences"]))
    assert any(row[2].startswith("+") for row in shown)


def cells(difference: dict[str, Any]) -> list[str]:
    """First, second, difference, interval and p, as a person writes what the command found."""
    d = difference
    shares = not d["metric"].endswith("per_image")
    scale, digits = (100, 1) if shares else (1, 2)
    values = [NONE if v is None else f"{scale * v:.2f}" for v in (d["first"], d["second"])]
    gain = NONE if d["difference"] is None else f"{scale * d['difference']:+.2f}"
    between = " to ".join(f"{scale * end:+.{digits}f}" for end in d["interval"] or ())
    return [*values, gain, between, NONE if d["p_value"] is None else f"{d['p_value']:.3f}"]
