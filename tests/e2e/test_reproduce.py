"""`sgg-rl reproduce r1-sgg --tiny`: the chain of a published row, run as it is printed."""

import json
import subprocess
import sys
from pathlib import Path

from services.settings import child_environment
from tests.processes import ROOT

FEWER_STEPS = {
    "SGG__SFT__NUM_STEPS": "4",
    "SGG__SFT__WARMUP_STEPS": "1",
    "SGG__TRAINER__NUM_STEPS": "2",
    "SGG__TRAINER__WARMUP_STEPS": "1",
    "SGG__TRAINER__GROUPS_PER_STEP": "4",
}


def test_the_whole_chain_runs_on_a_cpu(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cli.main", "reproduce", "r1-sgg", "--tiny", "--runs", tmp_path],
        cwd=ROOT,
        env=child_environment(**FEWER_STEPS),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-5000:] + done.stdout[-5000:]
    heldout = None
    for name in ("tiny-instruct", "tiny-sft", "tiny-grpo"):
        lines = (tmp_path / name / "inference/predictions.jsonl").read_text().splitlines()
        image_ids = [json.loads(line)["image_id"] for line in lines]
        assert heldout in (None, image_ids), "every row answers the same images, in their order"
        heldout = image_ids
        metrics = json.loads((tmp_path / name / "evaluation/metrics.json").read_text())
        assert metrics["num_images"] == len(image_ids) == 128
        assert set(metrics["protocols"]) == {"strict", "sgb", "r1-sgg"}
        assert metrics["objects"]["recall"] > 0.1, "the toy start can read some scenes"
        assert (tmp_path / name / "evaluation/report.html").stat().st_size > 50_000
    steps = (tmp_path / "tiny-grpo/metrics.jsonl").read_text().splitlines()
    assert len(steps) == 2
    left = subprocess.run(["pgrep", "-f", tmp_path], capture_output=True, text=True, check=False)
    assert left.stdout == "", "a service is still there"
