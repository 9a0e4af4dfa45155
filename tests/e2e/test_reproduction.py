"""`sgg-rl reproduce r1-sgg --tiny`: the chain of a published row, run as it is printed."""

import json
import subprocess
import sys
from pathlib import Path

from scene_data.dataset import open_dataset
from services.host.environment import child_environment
from tests.processes import ROOT

SHORTER = {
    "SGG__SFT__NUM_STEPS": "4",
    "SGG__SFT__WARMUP_STEPS": "1",
    "SGG__TRAINER__NUM_STEPS": "2",
    "SGG__TRAINER__WARMUP_STEPS": "1",
    "SGG__TRAINER__GROUPS_PER_STEP": "4",
    "SGG__EVALUATION__NUM_IMAGES": "8",
}
"""Fewer steps, and fewer images before and after them; the inference afterwards reads all."""


def test_the_whole_chain_runs_on_a_cpu(tmp_path: Path) -> None:
    tiny = ["reproduce", "r1-sgg", "--tiny", "--row", "tiny-grpo", "--runs", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "cli.main", *tiny],
        cwd=ROOT,
        env=child_environment(**SHORTER),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-5000:] + done.stdout[-5000:]
    run = tmp_path / "tiny-grpo"
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 2
    assert f"model.path={tmp_path}/tiny-sft/model" in (tmp_path / "reproduce-tiny.sh").read_text()
    lines = (run / "inference/predictions.jsonl").read_text().splitlines()
    heldout = open_dataset("build/toy-tiny/heldout.parquet")
    assert [json.loads(line)["image_id"] for line in lines] == [s.image_id for s in heldout]
    metrics = json.loads((run / "evaluation/metrics.json").read_text())
    assert metrics["num_images"] == len(lines) == 128
    assert set(metrics["protocols"]) == {"strict", "sgb", "r1-sgg"}
    assert metrics["objects"]["recall"] > 0.1, "the toy start can read some scenes"
    assert (run / "evaluation/report.html").stat().st_size > 50_000
    left = subprocess.run(["pgrep", "-f", tmp_path], capture_output=True, text=True, check=False)
    assert left.stdout == "", "a service is still there"
