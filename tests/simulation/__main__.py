"""`python -m tests.simulation`: run schedules, and say of a failing one how to see it again."""

import argparse
import gc
import logging
import multiprocessing
import multiprocessing.connection
import os
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.simulation import known_faults
from tests.simulation.schedule import Plan, plan
from tests.simulation.seams import install

if TYPE_CHECKING:
    from tests.simulation.world import Result

_cpu_s = time.process_time
_HASHES = "0"
"""Sets of texts are walked through in the same order each time."""


@dataclass(slots=True)
class Tally:
    """What a number of schedules came to."""

    schedules: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    events: int = 0
    starts: int = 0
    seconds: float = 0.0
    cpu_s: float = 0.0
    failures: list[str] = field(default_factory=list)

    def add(self, other: "Tally") -> None:
        """Both together."""
        for name in ("schedules", "events", "starts", "seconds", "cpu_s"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.faults += other.faults
        self.failures += other.failures

    def __str__(self) -> str:
        each = f"{1000 * self.cpu_s / max(self.schedules, 1):.0f} ms of CPU each"
        kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(self.faults.items()))
        return (
            f"{self.schedules} schedules, {each}: {self.faults.total()} faults ({kinds}), "
            f"{self.starts} starts of a trainer, {self.seconds / 3600:.1f} simulated hours, "
            f"{self.events} events, {len(self.failures)} violations"
        )


def main() -> int:
    """Exit code 1 where a promise was broken."""
    args = _arguments()
    if os.environ.get("PYTHONHASHSEED") != _HASHES:
        os.environ["PYTHONHASHSEED"] = _HASHES
        os.execv(sys.executable, [sys.executable, "-m", "tests.simulation", *sys.argv[1:]])
    if args.seed is not None:
        return _show(args)
    if args.known is not None:
        return _find_known(args)
    total = Tally()
    for tally in _all(args):
        total.add(tally)
        for failure in tally.failures:
            print(failure, flush=True)
        if total.failures and args.first:
            break
    print(total)
    return int(bool(total.failures))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", default="0:1000", help="first and one after the last")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--first", action="store_true", help="end with the first violation")
    parser.add_argument("--seed", type=int, help="one schedule, with what happens in it")
    parser.add_argument("--only", help="its faults that are kept, such as 0,3; - for none")
    parser.add_argument(
        "--fault", choices=sorted(known_faults.FAULTS), help="a known fault is back"
    )
    parser.add_argument("--known", nargs="*", help="find known faults: these, or all")
    parser.add_argument("--logs", action="store_true", help="with --seed: what the parts log")
    return parser.parse_args()


def _all(args: argparse.Namespace) -> Iterator[Tally]:
    first, last = map(int, args.seeds.split(":"))
    size = 25
    parts = [range(i, min(i + size, last)) for i in range(first, last, size)]
    if args.jobs == 1:
        _prepare(args.fault)
        for part in parts:
            yield _run(part, args.fault, args.first)
        return
    with ProcessPoolExecutor(args.jobs, initializer=_prepare, initargs=(args.fault,)) as pool:
        pending = [pool.submit(_run, part, args.fault, args.first) for part in parts]
        for job in pending:
            yield job.result()


def _find_known(args: argparse.Namespace) -> int:
    """How many schedules each known fault takes to be found; one that is not is a failure."""
    names = args.known or sorted(known_faults.FAULTS)
    first, last = map(int, args.seeds.split(":"))
    _prepare(None)
    missed, fork, waiting = 0, multiprocessing.get_context("fork"), [*names]
    running: dict[Any, str] = {}
    while waiting or running:
        while waiting and len(running) < args.jobs:
            name = waiting.pop(0)
            running[_finding(fork, name, range(first, last))] = name
        for answer in multiprocessing.connection.wait([*running]):
            assert isinstance(answer, multiprocessing.connection.Connection)
            tries, found = answer.recv()
            missed += not found
            said = f"{found or 'NOT FOUND'} ({tries} schedules)"
            print(f"{running.pop(answer)}: {said}", flush=True)
    print(f"{len(names) - missed} of {len(names)} known faults found in {last - first} schedules")
    return int(bool(missed))


def _finding(fork: Any, name: str, seeds: range) -> Any:
    """Where a process that has the fault, and all imports, says how it was found."""
    here, there = fork.Pipe()

    def child() -> None:
        known_faults.FAULTS[name]()
        for tries, seed in enumerate(seeds, start=1):
            if violations := _simulated(plan(seed)).violations:
                there.send((tries, f"seed {seed}, {violations[0][0]}: {violations[0][1]!r:.150}"))
                return
        there.send((len(seeds), ""))

    fork.Process(target=child).start()
    return here


def _prepare(fault: str | None, level: int = logging.ERROR) -> None:
    warnings.filterwarnings("ignore", message="coroutine .* was never awaited")  # of the killed
    install()
    from tests.simulation.world import ErrorNotes

    logging.basicConfig(level=level, handlers=[ErrorNotes()], force=True)
    if fault:
        known_faults.FAULTS[fault]()
    gc.freeze()  # what is imported stays, and is not looked through after each schedule


def _run(seeds: range, fault: str | None, ends_at_first: bool) -> Tally:
    tally = Tally()
    for seed in seeds:
        made, started = plan(seed), _cpu_s()
        result = _simulated(made)
        tally.cpu_s += _cpu_s() - started
        tally.schedules += 1
        tally.faults += Counter(each.kind for each in made.faults)
        tally.events += result.num_events
        tally.starts += result.num_starts
        tally.seconds += result.seconds
        if result.violations:
            tally.failures.append(_shrunk(made, result.violations[0], fault))
            if ends_at_first:
                break
    return tally


def _simulated(made: Plan) -> "Result":
    from tests.simulation.world import World

    root = Path("/dev/shm") if Path("/dev/shm").is_dir() else Path(os.environ.get("TMPDIR", "/tmp"))
    world = World(made, root / f"sgg-simulation-{os.getpid()}" / str(made.seed))
    gc.disable()  # it would run the `finally` of what was killed
    try:
        return world.run()
    finally:
        world.close()
        gc.enable()
        world.folder.parent.rmdir()


def _shrunk(made: Plan, violation: tuple[str, str], fault: str | None) -> str:
    """The failing schedule with as few faults as do it, as a command."""
    kind, kept = violation[0], [*range(len(made.faults))]
    for place in [*kept]:
        fewer = [each for each in kept if each != place]
        found = _simulated(made.keeping(fewer)).violations
        if found and found[0][0] == kind:
            kept, violation = fewer, found[0]
    lines = [f"seed {made.seed} broke a promise: {violation[0]}: {violation[1]:.600}"]
    lines += [f"    {made.faults[place]}" for place in kept]
    back = f" --fault {fault}" if fault else ""
    which = ",".join(map(str, kept)) or "-"
    return "\n".join(
        [*lines, f"  python -m tests.simulation --seed {made.seed} --only {which}{back}"]
    )


def _show(args: argparse.Namespace) -> int:
    """One schedule, told."""
    _prepare(args.fault, logging.DEBUG if args.logs else logging.ERROR)
    made = plan(args.seed)
    if args.only is not None:
        made = made.keeping([int(i) for i in args.only.split(",") if i != "-"])
    result = _simulated(made)
    print(made, *result.notes, sep="\n")
    found = "; ".join(f"{kind}: {text}" for kind, text in result.violations)
    print(found or f"all promises kept in {result.seconds:.1f} simulated seconds")
    return int(bool(result.violations))


if __name__ == "__main__":
    sys.exit(main())
