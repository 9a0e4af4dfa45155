"""The whole chain of a rehearsal: real SFT, trainer, Redis and services; the sampler is scripted.

With vLLM, at 2B's shapes: docs/verified.md.
"""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app
from launcher.rehearsal.chain import STAGES

SETTINGS = (
    "rollout.engine=fake",
    "data.train=nowhere/rows.parquet",
    "data.heldout=",
    "monitor.console=false",
    "cluster.gpu_memory_gib=1",
)


@pytest.mark.timeout(300)
def test_a_recipe_s_chain_is_rehearsed_and_a_fault_in_it_is_named(tmp_path: Path) -> None:
    overrides = [w for s in (*SETTINGS, f"run.root={tmp_path}") for w in ("--set", s)]
    command = ["rehearse", "--config", "demo", *overrides, "--json"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "demo-rehearsal/rehearsal.json").read_text())
    assert [(s["name"], s["state"]) for s in found["stages"]] == [(n, "passed") for n in STAGES]
    assert {"sft", "trainer", "rollout server", "reward", "infer"} <= found["peaks"].keys()
    cut = {change["field"]: change["here"] for change in found["cut"]}
    assert cut["trainer.num_steps"] == 2
    # Kill -9 after the first step, resumed by the run itself: each step stands there once.
    run = tmp_path / "demo-rehearsal/grpo"
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").open()]
    assert steps == [0, 1]
    assert "trainer was killed by SIGKILL" in (run.parent / "logs/grpo.log").read_text()
    assert not [*run.parent.rglob("*.safetensors")], "weights are removed"
    memory = {row["job"]: row for row in found["memory"]}
    assert 0.7 < memory["GRPO"]["ratio"] < 1.3
    assert any("data.train: nowhere/rows.parquet" in line for line in found["refused"])
    assert any("a trainer GPU needs" in line for line in found["refused"])


def test_a_stage_that_fails_ends_the_chain_with_its_reason(tmp_path: Path) -> None:
    overrides = [w for s in (*SETTINGS, f"run.root={tmp_path}") for w in ("--set", s)]
    wrong = ["--set", "data.template=nothing.txt"]
    done = CliRunner().invoke(app, ["rehearse", "--config", "demo", *overrides, *wrong])
    assert done.exit_code == 1
    found = json.loads((tmp_path / "demo-rehearsal/rehearsal.json").read_text())
    (failed,) = (s for s in found["stages"] if s["state"] == "failed")
    assert failed["name"] == "prompts"
    assert "nothing.txt" in failed["detail"]
    assert found["stages"][-1] == {
        "name": "report",
        "state": "not run",
        "seconds": None,
        "detail": "",
    }
    assert "nothing.txt" in done.output
