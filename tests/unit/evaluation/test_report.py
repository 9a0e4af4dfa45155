import json
from pathlib import Path

import pytest
from PIL import Image

from evaluation.plots import write_plots
from evaluation.samples_page import write_samples_page
from scene_data.dataset import open_dataset
from scene_data.templates import answer_text
from scene_data.toy import make_toy
from services.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    make_toy(tmp_path / "toy", num_train=4, num_heldout=3)
    run = tmp_path / "runs" / "r"
    run.mkdir(parents=True)
    return Settings.model_validate(
        {
            "run": {"name": "r", "root": str(tmp_path / "runs")},
            "model": {"path": "none"},
            "data": {
                "train": str(tmp_path / "toy/train.parquet"),
                "heldout": str(tmp_path / "toy/heldout.parquet"),
                "template": "toy",
            },
        }
    )


def write_answers(settings: Settings, label: str, texts: list[str]) -> None:
    lines = [json.dumps({"text": text}) + "\n" for text in texts]
    (settings.run.folder / f"heldout-{label}.jsonl").write_text("".join(lines))


def test_sample_page_marks_hits_misses_and_broken_answers(settings: Settings) -> None:
    dataset = open_dataset(settings.data.heldout or "")
    right = [answer_text(s.graph, "relative_1000", width=112, height=112) for s in dataset]
    write_answers(settings, "before", ["<answer>{oops</answer>"] * 3)
    write_answers(settings, "after", right)
    html = write_samples_page(settings).read_text()
    num_triplets = sum(len(s.graph.relationships) for s in dataset)
    assert html.count('<li class="hit">') == 2 * num_triplets, "reference and after"
    assert html.count('<li class="miss">') == num_triplets, "before"
    assert html.count('<li class="wrong">') == 0
    assert html.count("invalid_json") == 3
    assert "{oops" in html
    assert html.count("data:image/png;base64,") == 9
    assert "http://" not in html
    assert "https://" not in html


def test_model_text_cannot_become_markup(settings: Settings) -> None:
    write_answers(settings, "before", ["<script>alert(1)</script>"] * 3)
    assert "<script>" not in write_samples_page(settings).read_text()


def test_plots_are_drawn_from_metrics(tmp_path: Path) -> None:
    rows = [
        {
            "step": step,
            "reward_mean": step / 10,
            "reward_terms": {"format": 0.5, "edge": 0.1},
            "failure_rate": 0.1,
            "phases_s": {"wait": 1.0} | ({"checkpoint": 0.2} if step == 2 else {}),
            "grad_norm": 1.0,
            "mismatch_kl": 1e-4,
            "clip_fraction": 0.0,
        }
        for step in range(4)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = write_plots(tmp_path)
    assert [file.name for file in files] == [
        "reward.png",
        "terms.png",
        "phases.png",
        "learning.png",
    ]
    for file in files:
        with Image.open(file) as picture:
            assert len(set(picture.convert("L").tobytes())) > 10, "not an empty picture"


def test_run_without_steps_has_no_plots(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("")
    assert write_plots(tmp_path) == []
