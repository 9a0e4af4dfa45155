import json
from pathlib import Path

from PIL import Image

from evaluation.of_a_run.plots import write_plots
from services.run_folder import RunFolder


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
    files = write_plots(RunFolder(tmp_path))
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
    assert write_plots(RunFolder(tmp_path)) == []
