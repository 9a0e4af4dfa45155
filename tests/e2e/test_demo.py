"""`sgg-rl demo` as a person runs it: all processes, from an empty folder to the report."""

import json
import subprocess
import sys
from pathlib import Path

from scene_data.toy.scenes import make_toy
from services.host.environment import child_environment
from tests.processes import ROOT

OVERRIDES = {
    "trainer.num_steps": 2,
    "trainer.groups_per_step": 4,
    "trainer.tokens_per_micro_batch": 2000,
    "evaluation.num_images": 6,
    "rollout.max_num_seqs": 32,
}


def test_demo_leaves_everything_it_promises(tmp_path: Path) -> None:
    make_toy(tmp_path / "toy", num_train=32, num_heldout=6)
    overrides = {
        **OVERRIDES,
        "run.root": tmp_path / "runs",
        "data.train": tmp_path / "toy/train.parquet",
        "data.heldout": tmp_path / "toy/heldout.parquet",
    }
    options = [word for name, value in overrides.items() for word in ("--set", f"{name}={value}")]
    done = subprocess.run(
        [sys.executable, "-m", "cli.main", "demo", "--config", "configs/demo.toml", *options],
        cwd=ROOT,
        env=child_environment(),
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert done.stdout.startswith("watch it at http://127.0.0.1:"), "the console, first thing"
    run = tmp_path / "runs" / "demo"
    assert "monitor listens on" in (run / "logs/monitor.log").read_text()
    ledger = [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]
    assert [row["step"] for row in ledger] == [0, 1]
    assert len({name for row in ledger for name in row["group_ids"]}) == 8
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all({"wait", "train", "publish"} <= row["phases_s"].keys() for row in metrics)
    assert all(row["reward_mean"] > 0 for row in metrics), "the toy start can read some scenes"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["before"]["num_images"] == summary["after"]["num_images"] == 6
    assert "triplet_recall" in summary["after"]
    assert (run / "report.html").stat().st_size > 10_000
    assert {file.name for file in (run / "plots").iterdir()} >= {"reward.png", "phases.png"}
    assert "num_steps = 2" in (run / "config.toml").read_text()
    left = subprocess.run(["pgrep", "-f", str(run)], capture_output=True, text=True, check=False)
    assert left.stdout == "", "a process of the run is still there"

    from transformers import AutoModelForImageTextToText, AutoProcessor

    assert AutoModelForImageTextToText.from_pretrained(run / "checkpoint").num_parameters() > 1e6
    assert AutoProcessor.from_pretrained(run / "checkpoint").tokenizer is not None
