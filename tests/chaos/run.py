"""A run under faults, and what it broke.

    python -m tests.chaos.run --faults 500 --seed 1 --output build/chaos.json

It prints each fault with the seconds until the next step, then a table by kind, and ends with 1
where a promise was broken.
"""

import argparse
import itertools
import json
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.chaos.checker import read_history, violations
from tests.chaos.faults import Fault, inject, recovered, schedule
from tests.chaos.system import System
from tests.processes import ROOT, wait_for
from trainer.checkpoints.checkpoint import CheckpointStore
from trainer.ranks.write_guard import WriteGuard

RECOVERY_S = 120.0
"""No fault keeps the run from its next step for longer."""
_START_S = 300.0
_LAST_STEP_S = 120.0


@dataclass(frozen=True, slots=True)
class Seen:
    """A fault, and the seconds from its end to the next step."""

    fault: Fault
    seconds: float | None


@dataclass(kw_only=True)
class Outcome:
    """What became of a run."""

    seen: list[Seen] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    num_steps: int = 0
    num_groups: int = 0
    starts: dict[str, int] = field(default_factory=dict)
    weights: bytes = b""
    """The trained model's file, where the run came to its end."""


def under_faults(
    folder: Path, *, lag: int, num_steps: int, num_faults: int, seed: int, root: Path = ROOT
) -> Outcome:
    """Run until the faults or the steps are over, then stop and check.

    Args:
        folder: An empty one.
        lag: `trainer.max_policy_lag`.
        num_steps: The trainer's.
        num_faults: At most.
        seed: The schedule's.
        root: The project, or a changed copy of it.
    """
    outcome = Outcome()
    with System(folder, lag=lag, num_steps=num_steps, root=root) as system:
        trainer = system.parts["trainer"]
        wait_for("the first step", lambda: system.last_step()[0] >= 0, _START_S)
        for fault in itertools.islice(_until_done(system, seed), num_faults):
            inject(system, fault)
            outcome.seen.append(Seen(fault, recovered(system, RECOVERY_S)))
            _say(outcome.seen[-1])
            if outcome.seen[-1].seconds is None:
                outcome.broken.append(f"no step for {RECOVERY_S:g} s after {fault}")
                break
        if num_faults:
            trainer.terminate()
        trainer.wait(_LAST_STEP_S if num_faults else _START_S)
        if not trainer.is_done:
            outcome.broken.append("the trainer does not end")
        outcome.starts = {name: part.num_starts for name, part in system.parts.items()}
    _check(system, outcome)
    return outcome


def _until_done(system: System, seed: int) -> Iterator[Fault]:
    rng = random.Random(seed)
    for fault in schedule(seed, list(system.proxies)):
        time.sleep(rng.uniform(0.0, 1.0))  # anywhere in a step
        if system.parts["trainer"].is_done:
            return
        yield fault


def _check(system: System, outcome: Outcome) -> None:
    files = system.settings.run.files
    store = CheckpointStore(files.checkpoints, 2, WriteGuard(system.settings.run.folder))
    found = store.latest()
    if found is None:
        outcome.broken.append("there is no checkpoint")
        return
    rows = system.rows("ledger.jsonl"), system.rows("metrics.jsonl")
    history = read_history(system.settings, *rows, found[1])
    outcome.broken += violations(history)
    outcome.num_steps = found[1].step
    outcome.num_groups = len(history.records)
    model = files.checkpoint / "model.safetensors"
    outcome.weights = model.read_bytes() if model.exists() else b""


def _say(seen: Seen) -> None:
    fault, after = seen.fault, "never" if seen.seconds is None else f"{seen.seconds:.1f} s"
    lasts = f" for {fault.seconds:.1f} s" if fault.seconds else ""
    print(f"{fault.kind} {fault.target}{lasts}: the next step after {after}", flush=True)


def table(outcome: Outcome) -> str:
    """Faults by kind and target, with the seconds to the next step: median and longest."""
    by: dict[str, list[float]] = {}
    for seen in outcome.seen:
        target = seen.fault.target.rstrip("-0123456789")
        by.setdefault(f"{seen.fault.kind} {target}".strip(), []).append(seen.seconds or RECOVERY_S)
    lines = ["| fault | times | median s | longest s |", "|---|---|---|---|"]
    for name, seconds in sorted(by.items()):
        middle, most = statistics.median(seconds), max(seconds)
        lines.append(f"| {name} | {len(seconds)} | {middle:.1f} | {most:.1f} |")
    return "\n".join(lines)


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--lag", type=int, default=1)
    parser.add_argument("--output", type=Path)
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that no part outlives it
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        outcome = under_faults(
            Path(folder), lag=asked.lag, num_steps=10**6, num_faults=asked.faults, seed=asked.seed
        )
    print(table(outcome))
    print(f"{outcome.num_steps} steps, {outcome.num_groups} groups; starts {outcome.starts}")
    print("\n".join(outcome.broken) or "every promise was kept")
    if asked.output is not None:
        asked.output.parent.mkdir(parents=True, exist_ok=True)
        tree = {**asdict(outcome), "weights": None, "seed": asked.seed, "lag": asked.lag}
        asked.output.write_text(json.dumps(tree, indent=1))
    return bool(outcome.broken)


if __name__ == "__main__":
    sys.exit(main())
