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
from collections.abc import Iterable
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
_ENDLESS = 10**6
"""Steps of a run that is stopped after its faults."""


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
    folder: Path,
    faults: Iterable[Fault],
    *,
    lag: int = 1,
    num_steps: int = _ENDLESS,
    min_steps: int = 1,
    recovery_s: float = RECOVERY_S,
    root: Path = ROOT,
) -> Outcome:
    """Run until the faults or the steps are over, then stop and check.

    Args:
        folder: An empty one.
        faults: One after the other, each from anywhere in a step.
        lag: `trainer.max_policy_lag`.
        num_steps: The trainer's.
        min_steps: Before the first fault.
        recovery_s: Longest time from a fault's end to the next step.
        root: The project, or a changed copy of it.
    """
    rng = random.Random(0)
    outcome = Outcome()
    with System(folder, lag=lag, num_steps=num_steps, root=root) as system:
        trainer = system.parts["trainer"]
        wait_for("first steps", lambda: _has(system, min_steps), _START_S)
        for fault in faults:
            time.sleep(rng.uniform(0.0, 1.0))
            if trainer.is_done:
                break
            inject(system, fault)
            outcome.seen.append(Seen(fault, recovered(system, recovery_s)))
            _say(outcome.seen[-1])
            if outcome.seen[-1].seconds is None:
                outcome.broken.append(f"no step for {recovery_s:g} s after {fault}")
                break
        if num_steps == _ENDLESS:
            trainer.terminate()
        trainer.wait(_START_S)
        if not trainer.is_done:
            outcome.broken.append("the trainer does not end")
        outcome.starts = {name: part.num_starts for name, part in system.parts.items()}
    _check(system, outcome)
    return outcome


def _has(system: System, num_steps: int) -> bool:
    return system.last_step()[0] >= num_steps - 1 or system.parts["trainer"].is_done


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
        faults = itertools.islice(schedule(asked.seed), asked.faults)
        outcome = under_faults(Path(folder), faults, lag=asked.lag)
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
