"""docs/tutorials/own-pictures.md as it stands: its files written, its commands run in a shell."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from services.host.environment import child_environment
from services.host.ports import free_port
from tests.processes import ROOT

PAGE = ROOT / "docs/tutorials/own-pictures.md"
BLOCK = re.compile(r"^(?:`([\w.]+)`:\n\n)?```(\w+)\n(.*?)^```$", re.M | re.S)
SCRIPTS = Path(sys.executable).parent


def commands(folder: Path) -> Iterator[str]:
    """The page's commands, one by one; its files are written where it shows them."""
    for name, kind, body in BLOCK.findall(PAGE.read_text()):
        if name:
            (folder / name).write_text(body)
        elif kind == "sh":
            yield from body.splitlines()


def said(command: str, folder: Path, redis: str) -> str:
    env = child_environment(SGG__REDIS__URL=redis, COLUMNS="80")
    env["PATH"] = f"{SCRIPTS}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_own_pictures_go_through_everything(tmp_path: Path) -> None:
    redis = f"redis://127.0.0.1:{free_port()}/0"  # others may have a run of this name
    outputs = {command: said(command, tmp_path, redis) for command in commands(tmp_path)}
    assert len(outputs) <= 15
    assert any("48 images, 119 objects, 71 relationships" in text for text in outputs.values())
    losses = [row["loss"] for row in rows(tmp_path / "runs/mine-sft/metrics.jsonl")]
    assert losses[-1] < losses[0] / 2, "SFT teaches the instruction"
    steps = rows(tmp_path / "runs/mine/metrics.jsonl")
    assert len(steps) == 3
    assert all(0 < row["reward_terms"]["no_extras"] <= 1 for row in steps)
    assert "no_extras" in outputs["sgg-rl rollouts runs/mine --step 2"]
    assert "instruction.txt" in (tmp_path / "runs/mine/config.toml").read_text()
    assert (tmp_path / "runs/mine/report.html").stat().st_size > 10_000
    predictions = rows(tmp_path / "predicted/predictions.jsonl")
    assert len(predictions) == 6
    read = [row for row in predictions if "status" not in row]
    assert read, "none of the answers is a graph"
    boxes = [item["bbox"] for row in read for item in row["objects"]]
    assert boxes
    assert all(0 <= side <= 112 for box in boxes for side in box)
    assert len(list((tmp_path / "predicted/drawings").iterdir())) == len(read)
    page = (tmp_path / "predicted/predictions.html").read_text()
    assert "predicted/predictions.html" in outputs[list(outputs)[-1]]
    assert len(page) > 10_000
