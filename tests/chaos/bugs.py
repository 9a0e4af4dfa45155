"""Faults of the code itself, planted in a copy of it: the checker has to find each.

Each breaks one promise where the code keeps it. A planted bug that no fault of a run brings out
shows nothing, so each names the faults that do.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.faults import Fault
from tests.processes import ROOT

KILLS = (Fault("kill", "trainer"),) * 2
SERVERS = tuple(Fault("kill", f"rollout-{number}") for number in (0, 1, 2, 0, 1, 2))


@dataclass(frozen=True, slots=True)
class Bug:
    """One line of the code as it is, and as somebody might have written it."""

    name: str
    file: str
    old: str
    new: str
    finds: str
    """What the checker says, in part."""
    faults: tuple[Fault, ...] = ()


BUGS = (
    Bug(
        "a position is done when its answer is here, not when its step is",
        "trainer/collection/collector.py",
        "            opened.received = True\n",
        "            opened.received = True\n            self._cursor.finish(opened.position)\n",
        "is lost",
        KILLS,
    ),
    Bug(
        "a resume leaves the steps after its checkpoint in the tables",
        "trainer/records/step_lines.py",
        "if _step_of(line) < step:",
        "if line.strip():",
        "ledger: steps",
        KILLS,
    ),
    Bug(
        "the cursor of a checkpoint is one position behind",
        "trainer/collection/cursor.py",
        "CursorState(low=self._low,",
        "CursorState(low=max(self._low - 1, 0),",
        "trained on 2 times",
        KILLS,
    ),
    Bug(
        "a checkpoint says the step before its own",
        "trainer/connection.py",
        '{"step": step, "cursor"',
        '{"step": step - 1, "cursor"',
        "is lost",
        KILLS,
    ),
    Bug(
        "tokens get the label of the version before",
        "rollout_service/fake/engine.py",
        "draft.extend(self._version)",
        "draft.extend(max(self._version - 1, 0))",
        "not what version",
    ),
    Bug(
        "half of the completions come from the old weights",
        "rollout_service/fake/engine.py",
        'self._draft(f"{seed}/{i}"',
        "self._draft(f\"{seed.rpartition('/')[0]}/{max(self._version - i % 2, 0)}/{i}\"",
        "not what version",
    ),
    Bug(
        "a group that lost its server once is dead",
        "services/redis/queue.py",
        "max_expiries: int = 15",
        "max_expiries: int = 1",
        "dead without a fault",
        SERVERS,
    ),
    Bug(
        "groups that the reward service could not score are dead",
        "trainer/collection/group_scoring.py",
        "found = GroupError(detail=error.message, retryable=True)",
        "return GroupError(detail=error.message)",
        "dead without a fault",
        (Fault("cut", "trainer to reward", 8.0),) * 3,
    ),
    Bug(
        "some steps leave no line in the metrics",
        "trainer/records/files.py",
        "        self._room.write(lambda: self._metrics.append(metrics))\n",
        '        if metrics["step"] % 3:\n'
        "            self._room.write(lambda: self._metrics.append(metrics))\n",
        "metrics: steps",
    ),
    Bug(
        "the second rank keeps no groups",
        "trainer/records/rollout_files.py",
        "self._written = self._thread.submit(write)",
        "self._written = None if self.rank else self._thread.submit(write)",
        "ledger and kept groups differ",
    ),
    Bug(
        "the ledger forgets a step's last group",
        "trainer/records/files.py",
        "[name for name in ids if name not in skipped]",
        "[name for name in ids[:-1] if name not in skipped]",
        "is lost",
    ),
    Bug(
        "a server samples by a seed of its own",
        "rollout_service/queue/worker.py",
        "            sampling=prompt.sampling,\n",
        '            sampling=prompt.sampling.model_copy(update={"seed": 12345}),\n',
        "not what version",
    ),
)


def planted(bug: Bug, folder: Path) -> Path:
    """A copy of the project with it."""
    for package in (p.parent for p in ROOT.glob("*/__init__.py")):
        shutil.copytree(package, folder / package.name, ignore=shutil.ignore_patterns("*.pyc"))
    for name in ("assets", "configs"):
        (folder / name).symlink_to(ROOT / name)
    file = folder / bug.file
    text = file.read_text()
    if text.count(bug.old) != 1:
        raise ValueError(f"{bug.name}: {bug.file} has its line {text.count(bug.old)} times")
    file.write_text(text.replace(bug.old, bug.new))
    return folder
