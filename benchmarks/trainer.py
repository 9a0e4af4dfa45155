"""A training step against TRL's GRPOTrainer, on the same prompts, completions and rewards.

python benchmarks/trainer.py [--model toy-start|small|qwen2.5-vl-3b] [--rounds 3] [--steps 3]
python benchmarks/trainer.py --model qwen2.5-vl-3b --device cuda --ours   # needs a GPU
python benchmarks/trainer.py --images                                     # image work alone
python benchmarks/trainer.py --before ../older                            # and our older checkout
python benchmarks/trainer.py --cpu-time                                   # on a busy machine

Each round runs each side in a process of its own, one after the other; a step is from the
scored groups to the updated weights (decoding and preprocessing images included, sampling not).
Peak memory is over what the process held after its first step.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.flops import step_flops

SIDES = ("ours", "trl")
BEFORE = "before"
CPU_TIME = """
import runpy, sys, time
time.perf_counter, sys.argv = time.process_time, sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Runs a file whose clock counts the seconds of its process alone, of all its threads."""


def main() -> None:
    """Run a child's part, or all rounds."""
    arguments = _arguments()
    if arguments.side:
        found = _side(arguments)
        sys.stdout.write(f"\n{json.dumps(found)}\n")
        return
    with tempfile.TemporaryDirectory() as folder:
        for name in [arguments.model] if arguments.model else ["toy-start", "small"]:
            if arguments.images:
                _compare_images(name, Path(folder))
            else:
                _compare(name, arguments, folder)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=["toy-start", "small", "qwen2.5-vl-3b", "qwen2.5-vl-7b"])
    parser.add_argument("--layers", type=int, help="of the text; else all")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="of a round, after one to warm up")
    parser.add_argument("--ours", action="store_true", help="leave TRL out")
    parser.add_argument("--before", type=Path, help="another checkout, whose step is measured too")
    parser.add_argument("--cpu-time", action="store_true", help="count no waiting for a core")
    parser.add_argument("--images", action="store_true", help="image work of a group only")
    parser.add_argument(
        "--peak-tflops", type=float, default=989, help="H100, H200, GH200: bfloat16"
    )
    parser.add_argument("--side", choices=SIDES, help="of a child process")
    parser.add_argument("--folder", help="of a child process")
    return parser.parse_args()


def _side(arguments: argparse.Namespace) -> dict[str, Any]:
    from benchmarks.trainer_load import LOADS

    if arguments.side == "ours":
        from benchmarks.trainer_ours import run
    else:
        from benchmarks.trainer_trl import run
    on_gpu = arguments.device == "cuda"
    dtype = "bfloat16" if on_gpu else "float32"
    load = LOADS[arguments.model].cut(arguments.layers)
    path = load.model_path(Path(arguments.folder), dtype)
    return run(load, path, arguments.steps, dtype, checkpointing=on_gpu)


def _compare(name: str, arguments: argparse.Namespace, folder: str) -> None:
    wanted = {"ours": True, "trl": not arguments.ours, BEFORE: arguments.before is not None}
    sides = [side for side, is_wanted in wanted.items() if is_wanted]
    results: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for _ in range(arguments.rounds):
        for side in sides:
            results[side].append(
                run_side(
                    side,
                    name,
                    folder,
                    device=arguments.device,
                    steps=arguments.steps,
                    before=arguments.before,
                    cpu_time=arguments.cpu_time,
                )
            )
    _print_table(name, results)
    _print_phases(results["ours"])
    if arguments.device == "cuda":
        _print_use(results["ours"], arguments.peak_tflops)


def run_side(
    side: str,
    name: str,
    folder: str,
    *,
    device: str,
    steps: int,
    layers: int | None = None,
    timeout_s: float | None = None,
    before: Path | None = None,
    cpu_time: bool = False,
) -> dict[str, Any]:
    """One side's steps, in a process of its own.

    Args:
        side: One of `SIDES`, or `BEFORE`: ours of another checkout.
        name: The load's.
        folder: Where its model is made.
        device: `cpu` or `cuda`.
        steps: After one to warm up.
        layers: Of the text; None: all.
        timeout_s: None waits.
        before: The other checkout.
        cpu_time: Count no waiting for a core.

    Raises:
        RuntimeError: It failed, or took longer than `timeout_s`.
    """
    file = Path(__file__)
    if side == BEFORE and before is not None:
        file, side = before / "benchmarks/trainer.py", SIDES[0]
    command = [sys.executable, *(("-c", CPU_TIME) if cpu_time else ()), str(file)]
    command += ["--side", side, "--model", name, "--folder", folder]
    command += ["--device", device, "--steps", str(steps)]
    command += ["--layers", str(layers)] if layers else []
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"{side} took over {timeout_s:.0f} s") from error
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _median(results: list[dict[str, Any]], key: str) -> float:
    values = [r[key] if isinstance(r[key], list) else [r[key]] for r in results]
    return float(statistics.median([value for of_round in values for value in of_round]))


def _print_table(name: str, results: dict[str, list[dict[str, Any]]]) -> None:
    work = results["ours"][0]["work"]
    print(f"\n## {name}: {work['model_tokens']} tokens in place of {work['plain_tokens']}\n")
    print("| | step, s | peak over the start, MiB | gradient norm |\n|---|---|---|---|")
    for side, of_side in results.items():
        print(
            f"| {side} | {_median(of_side, 'seconds'):.3f} | {_median(of_side, 'rise_mib'):.0f} "
            f"| {of_side[0]['grad_norm']:.5f} |"
        )
    for other in [side for side in results if side != "ours"]:
        speed = _median(results[other], "seconds") / _median(results["ours"], "seconds")
        memory = _median(results[other], "rise_mib") / _median(results["ours"], "rise_mib")
        print(f"| {other} / ours | {speed:.2f} | {memory:.2f} | |")


def _print_phases(ours: list[dict[str, Any]]) -> None:
    step = _median(ours, "seconds")
    print("\n| phase of our step | s | share |\n|---|---|---|")
    for phase in ours[0]["phases"]:
        seconds = statistics.median([r["phases"][phase] for r in ours])
        print(f"| {phase} | {seconds:.3f} | {seconds / step:.0%} |")
    print(f"\nPrepared beside the step before, it is waited for {_median(ours, 'waits'):.4f} s.")


def _print_use(ours: list[dict[str, Any]], peak_tflops: float) -> None:
    work, step = ours[0]["work"], _median(ours, "seconds")
    flops = step_flops(work)
    print(
        f"\n{work['model_tokens'] / step:.0f} tokens/s ({work['plain_tokens'] / step:.0f} as "
        f"separate sequences), {flops / step / 1e12:.1f} TFLOP/s = "
        f"{flops / step / peak_tflops / 1e12:.1%} of {peak_tflops:.0f}; peak memory "
        f"{_median(ours, 'peak_mib') / 1024:.1f} GiB"
    )


def _compare_images(name: str, folder: Path) -> None:
    """A group's image once, against once for each completion."""
    import torch

    from benchmarks.trainer_load import LOADS, questions
    from benchmarks.trainer_ours import _settings
    from trainer.batches.images import image_features
    from trainer.policy.model import load_model, load_processor

    load = LOADS[name]
    settings = _settings(load, load.model_path(folder), "float32", checkpointing=False)
    processor, visual = load_processor(settings), load_model(settings).model.visual

    def work(times: int) -> float:
        start = time.perf_counter()
        for question in questions(load):
            images = [image_features(question.sample, processor) for _ in range(times)]
            pixels = torch.cat([image.pixels for image in images])
            grid = torch.stack([image.grid for image in images])
            visual(pixels, grid_thw=grid).pooler_output.sum().backward()
        return time.perf_counter() - start

    work(1)
    rounds = [(work(1), work(load.group_size)) for _ in range(5)]
    once, each = (statistics.median(values) for values in zip(*rounds, strict=True))
    print(
        f"{name}: {load.num_groups} images read, preprocessed and encoded, forward and backward: "
        f"{once:.3f} s once per group, {each:.3f} s once per completion, {each / once:.1f} times"
    )


if __name__ == "__main__":
    main()
