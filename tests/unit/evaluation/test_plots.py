"""A run's pictures, drawn from its files."""

import json
from pathlib import Path
from typing import Any

import pytest
from matplotlib import pyplot as plt
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from PIL import Image

from evaluation.of_a_run.plots import write_plots
from services.run_folder import RunFolder

PICTURES = ["reward.png", "terms.png", "phases.png", "learning.png"]


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Those that are saved meanwhile, in their order."""
    kept: list[Figure] = []
    monkeypatch.setattr(plt, "close", kept.append)
    return kept


def write(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def step_row(step: int) -> dict[str, Any]:
    return {
        "step": step,
        "policy_version": step,
        "reward_mean": step / 10,
        "reward_terms": {"format": 0.5, "edge": 0.1},
        "failure_rate": 0.1,
        "phases_s": {"wait": 1.0} | ({"checkpoint": 0.2} if step == 2 else {}),
        "loss": 0.0,
        "grad_norm": 1.0,
        "mismatch_kl": None if step == 1 else 1e-4,  # it was not finite
        "clip_fraction": 0.0,
    }


def test_plots_are_drawn_from_metrics(tmp_path: Path, figures: list[Figure]) -> None:
    folder = tmp_path / "$run_1"  # no formula
    folder.mkdir()
    write(folder / "metrics.jsonl", [step_row(step) for step in range(4)])
    scores = {"num_images": 64, "triplet_f1": 0.25, "object_f1": 0.5}
    first = scores | {"step": 0}  # of an earlier release: without intervals
    last = scores | {"step": 4, "intervals": {"triplet_f1": [0.125, 0.5], "object_f1": [0.5, 0.5]}}
    write(folder / "evaluations.jsonl", [first, last])
    files = write_plots(RunFolder(folder))
    assert [file.name for file in files] == PICTURES
    for file in files:
        with Image.open(file) as picture:
            assert len(set(picture.convert("L").tobytes())) > 10, "not an empty picture"
    assert sorted(folder.rglob("*")) == sorted([*folder.glob("*"), *files]), "no draft is left"
    assert {figure.get_suptitle() for figure in figures} == {"$run_1"}
    panels = figures[-1].axes
    assert [axes.get_ylabel() for axes in panels] == ["reward", "share", "norm", "nats", "share"]
    heldout, kl = panels[1], panels[3]
    assert heldout.get_title(loc="left") == "Held-out: strict, 64 images, with 95 % intervals"
    bars = [c.get_segments() for c in heldout.collections if isinstance(c, LineCollection)]
    assert [segment.tolist() for segment in bars[0]] == [
        [[0, 0.25], [0, 0.25]],
        [[4, 0.125], [4, 0.5]],
    ]
    assert kl.lines[0].get_xdata().tolist() == [1, 3, 4]  # type: ignore[union-attr]


def test_a_run_of_sft_has_its_loss(tmp_path: Path, figures: list[Figure]) -> None:
    rows = [{"step": s, "loss": 0.5, "grad_norm": 2.0, "phases_s": {"train": 1.0}} for s in (1, 21)]
    write(tmp_path / "metrics.jsonl", rows)
    assert [file.name for file in write_plots(RunFolder(tmp_path))] == [
        "phases.png",
        "learning.png",
    ]
    assert [axes.get_ylabel() for axes in figures[-1].axes] == ["nats", "norm"]


def test_run_without_steps_has_no_plots(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("")
    assert write_plots(RunFolder(tmp_path)) == []
