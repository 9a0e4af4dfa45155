"""A run under faults, and what it broke.

    python -m tests.chaos.run --faults 500 --seed 1 --output build/chaos.json
    python -m tests.chaos.run --faults 40 --kind half-open
    python -m tests.chaos.run --engine vllm

It prints each fault with the seconds until the next step, then a table by kind and one of what is
promised of recovery, and ends with 1 where a promise of `tests/chaos/checker.py` was broken.
"""

import argparse
import itertools
import json
import os
import random
import re
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import get_args

from tests.chaos.checker import read_history, violations
from tests.chaos.disks import IN_NAMESPACE, may_mount
from tests.chaos.faults import OF_VLLM, Fault, Kind, inject, schedule
from tests.chaos.recovery import BOUNDS_S, Seen, Watch
from tests.chaos.redises import may_shift_clock
from tests.chaos.system import Engine, System
from tests.processes import ROOT, wait_for
from trainer.checkpoints.checkpoint import CheckpointStore
from trainer.ranks.write_guard import WriteGuard

LONGEST_S = 600.0
"""A run without a step for so long has not come back from a fault."""
_START_S = 300.0
_HAS_HOST = "CHAOS_HAS_HOST"
"""Set in the environment of a process in a mount namespace of its own."""
_ENDLESS = 10**6
"""Steps of a run that is stopped after its faults."""


@dataclass(kw_only=True)
class Outcome:
    """What became of a run."""

    seen: list[Seen] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    undone: list[str] = field(default_factory=list)
    """Faults that could not be done, or not wholly, and why."""
    num_steps: int = 0
    num_groups: int = 0
    starts: dict[str, int] = field(default_factory=dict)
    ended: dict[str, list[int]] = field(default_factory=dict)
    """Parts that ended otherwise than by a kill, with their exit codes."""
    weights: bytes = b""
    """The trained model's file, where the run came to its end."""


def under_faults(
    folder: Path,
    faults: Iterable[Fault],
    *,
    lag: int = 1,
    num_steps: int = _ENDLESS,
    min_steps: int = 1,
    longest_s: float = LONGEST_S,
    root: Path = ROOT,
    engine: Engine = "fake",
    own_host: bool = False,
) -> Outcome:
    """Run until the faults or the steps are over, then stop and check.

    Args:
        folder: An empty one.
        faults: One after the other, each from anywhere in a step.
        lag: `trainer.max_policy_lag`.
        num_steps: The trainer's.
        min_steps: Before the first fault.
        longest_s: Longest time from a fault's end to the next step.
        root: The project, or a changed copy of it.
        engine: Of the rollout servers.
        own_host: See `System`.
    """
    outcome = Outcome()
    system = System(
        folder, lag=lag, num_steps=num_steps, root=root, engine=engine, own_host=own_host
    )
    with system:
        trainer = system.parts["trainer"]
        wait_for("first steps", lambda: _has(system, min_steps), _START_S)
        _suffer(system, faults, outcome, longest_s)
        if num_steps == _ENDLESS:
            trainer.terminate()
        trainer.wait(_START_S)
        if not trainer.is_done:
            outcome.broken.append("the trainer does not end")
        outcome.starts = {name: part.num_starts for name, part in system.parts.items()}
        outcome.ended = {name: part.ended for name, part in system.parts.items() if part.ended}
        _check(system, outcome)
    return outcome


def _suffer(system: System, faults: Iterable[Fault], outcome: Outcome, longest_s: float) -> None:
    rng = random.Random(0)
    for fault in faults:
        time.sleep(rng.uniform(0.0, 1.0))
        if system.parts["trainer"].is_done:
            return
        watch = Watch(system, fault)
        try:
            inject(system, fault)
        except (AssertionError, OSError, ValueError) as error:
            outcome.undone.append(f"{fault}: {error}")
            print(outcome.undone[-1], flush=True)
        outcome.seen.append(watch.ended(longest_s))
        _say(outcome.seen[-1])
        if outcome.seen[-1].seconds is None:
            outcome.broken.append(f"no step for {longest_s:g} s after {fault}")
            return


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
    promised = "" if seen.promised_s in (None, seen.seconds) else f"; {seen.promised_s:.1f} s"
    late = f"; LATE: {seen.promise}" if seen.is_late else ""
    now = time.strftime("%H:%M:%S")
    print(
        f"{now} {fault.kind} {fault.target}{lasts}: the next step after {after}{promised}{late}",
        flush=True,
    )


def table(outcome: Outcome) -> str:
    """Faults by kind and target, with the seconds to the next step: median and longest."""
    by: dict[str, list[Seen]] = {}
    for seen in outcome.seen:
        target = re.sub(r"-?\d", "", seen.fault.target)
        by.setdefault(f"{seen.fault.kind} {target}".strip(), []).append(seen)
    lines = ["| fault | times | open groups | median s | longest s |", "|---|---|---|---|---|"]
    for name, some in sorted(by.items()):
        groups = sum(seen.num_open for seen in some)
        seconds = [LONGEST_S if seen.seconds is None else seen.seconds for seen in some]
        lines.append(f"| {name} | {len(some)} | {groups} | {_middle_and_most(seconds)} |")
    return "\n".join(lines)


def promises(outcome: Outcome) -> str:
    """What is promised of recovery, and what was seen of it."""
    lines = [
        "| promise | in s | times | median s | longest s | late |",
        "|---|---|---|---|---|---|",
    ]
    for promise, bound in BOUNDS_S.items():
        some = [seen for seen in outcome.seen if seen.promise == promise]
        seconds = [seen.promised_s for seen in some if seen.promised_s is not None]
        if seconds:
            late = sum(seen.is_late for seen in some)
            times = f"{bound:g} | {len(seconds)} | {_middle_and_most(seconds)}"
            lines.append(f"| {promise} | {times} | {late} |")
    return "\n".join(lines)


def _middle_and_most(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.1f} | {max(seconds):.1f}"


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kind", choices=get_args(Kind), help="no others, with the fake engine")
    parser.add_argument("--lag", type=int, default=1)
    parser.add_argument("--engine", choices=("fake", "vllm"), default="fake")
    parser.add_argument("--output", type=Path)
    asked = parser.parse_args()
    own_host = _on_own_host()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that no part outlives it
    if not own_host:
        print("no full disks and no shifted clock: they take `unshare` and Debian's libfaketime")
    faults: Iterator[Fault] = iter(OF_VLLM)
    if asked.engine == "fake":
        some = (f for f in schedule(asked.seed, own_host=own_host) if asked.kind in (None, f.kind))
        faults = itertools.islice(some, asked.faults)
    start = time.time()
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        outcome = under_faults(
            Path(folder), faults, lag=asked.lag, engine=asked.engine, own_host=own_host
        )
    print(f"{table(outcome)}\n\n{promises(outcome)}\n")
    print(f"{outcome.num_steps} steps, {outcome.num_groups} groups, {time.time() - start:.0f} s")
    print(f"not done {outcome.undone}")
    print(f"starts {outcome.starts}; ended by themselves {outcome.ended}")
    print("\n".join(outcome.broken) or "every promise was kept")
    if asked.output is not None:
        asked.output.parent.mkdir(parents=True, exist_ok=True)
        tree = {**asdict(outcome), "weights": None, "seed": asked.seed, "lag": asked.lag}
        asked.output.write_text(json.dumps(tree, indent=1))
    return bool(outcome.broken)


def _on_own_host() -> bool:
    """Go on in a mount namespace, which takes its disks with it. Whether there can be any."""
    if _HAS_HOST not in os.environ and may_mount() and may_shift_clock():
        words = [*IN_NAMESPACE, sys.executable, "-m", "tests.chaos.run", *sys.argv[1:]]
        os.execvpe(words[0], words, {**os.environ, _HAS_HOST: "1"})
    return _HAS_HOST in os.environ


if __name__ == "__main__":
    sys.exit(main())
