"""`benchmarks/gpu.py`: its formula against a case by hand, its file, what it cannot do."""

import argparse
import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from benchmarks.flops import step_flops, visible_pairs
from benchmarks.gpu import Report, Result, fitting_layers, markdown, sample, timed, trained
from benchmarks.trainer_load import SMALL
from planning.preflight.gpus import Gpu


def test_mfu_is_that_of_a_case_by_hand() -> None:
    # The prompt's tokens see 1 + 2 + 3; those of the answers 4 + 5 and 4.
    assert visible_pairs(3, [2, 1]) == 6 + 9 + 4
    work: dict[str, float] = {
        "layers": 10,
        "vision": 5,
        "head": 7,
        "model_tokens": 6,
        "image_tokens": 1,
        "scored_tokens": 3,
        "attention": 2 * 4 * 19,  # two layers of width 4
    }
    assert step_flops(work) == 6 * (10 * 6 + 5 * 4 + 7 * 3) + 12 * 2 * 4 * 19 == 2430
    side = trained("x", {"seconds": [0.5, 9.0, 0.4], "peak_mib": 512}, work, peak_tflops=1e-6)
    assert side.mfu == pytest.approx(2430 / 0.5 / 1e6)
    assert (side.step_s, side.tokens_per_s, side.peak_gib) == (0.5, 6, 0.5)


def test_the_file_is_what_is_shown_and_says_what_failed() -> None:
    def failing(_: float) -> Result:
        raise RuntimeError("CUDA out of memory\nmore")

    now = time.monotonic()
    late = timed("qwen2.5-vl-7b", "rollout", now + 5, failing)
    failed = timed("qwen2.5-vl-7b", "trainer", now + 500, failing)
    assert (late.state, failed.state) == ("no time left", "failed")
    sides = {
        name: trained(name, {"seconds": [step], "peak_mib": 1024}, dict.fromkeys(_WORK, 10), 1e-3)
        for name, step in (("sgg-rl", 0.5), ("TRL", 2.0))
    }
    done = Result(
        model="m",
        part="trainer",
        state="done",
        layers=14,
        of_layers=28,
        ours=sides["sgg-rl"],
        baseline=sides["TRL"],
        ratio=4.0,
    )
    report = Report(
        machine={"device": "H200", "torch": "2.13"},
        minutes=15,
        peak_tflops=989,
        results=[done, failed, late],
    )
    again = Report.model_validate_json(report.model_dump_json())
    assert again == report
    rows = markdown(again).splitlines()[-3:]
    assert rows[0].startswith("| m | trainer | 14 of 28 | 20 | 5 (TRL) | 4.00 |")
    assert "failed CUDA out of memory |" in rows[1]
    assert "no time left" in rows[2]
    with pytest.raises(ValidationError, match="schema"):
        Report.model_validate(report.model_dump(by_alias=True) | {"schema": 2})


_WORK = ("layers", "vision", "head", "model_tokens", "image_tokens", "scored_tokens", "attention")


def test_the_model_that_is_sampled_is_the_one_that_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(command: list[str], **_: Any) -> Any:
        path = Path(command[command.index("--model") + 1])
        text = json.loads((path / "config.json").read_text())["text_config"]
        assert text["hidden_size"] == SMALL["text"]["hidden_size"]
        numbers = json.dumps({"queue": [90.0, 80.0], "raw": [100.0, 100.0]})
        return subprocess.CompletedProcess(command, 0, f"round | ...\n{numbers}\n", "")

    monkeypatch.setattr(subprocess, "run", run)
    found = sample("small", str(tmp_path), argparse.Namespace(device="cpu"), seconds=60.0)
    assert found.ratio == pytest.approx(0.85)
    assert found.layers == SMALL["text"]["num_hidden_layers"]


def test_a_large_model_trains_with_as_many_layers_as_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    def layers(model: str, gib: float) -> int:
        gpu = Gpu(0, "GPU-1", "any", gib, 9.0, "580")
        monkeypatch.setattr("benchmarks.gpu.visible_gpus", lambda: [gpu])
        return fitting_layers(model)

    assert layers("qwen2.5-vl-3b", 139) == 36, "all"
    half = layers("qwen2.5-vl-7b", 100)
    assert 4 < half < layers("qwen2.5-vl-7b", 139) < 28
    with pytest.raises(RuntimeError, match="7 GiB are too few"):
        layers("qwen2.5-vl-7b", 8)
