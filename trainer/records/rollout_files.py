"""The groups of a run, whole, with an index: for people and for tests."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from services.host.sync import sync
from services.run_folder.index_line import IndexLine
from services.run_folder.records import RolloutRecord, packed
from services.schemas.groups import TrainGroup
from services.waiting import RoomWait
from trainer.records.index_lines import index_line, line_without_answers
from trainer.records.step_lines import StepLines
from trainer.types import UnusedGroup


@dataclass
class RolloutFiles:
    """One file a step, of one rank, and the rank's index of all of them.

    They are written in a thread, beside what comes after `write`: the next step, mostly. A step is
    begun once the one before it is written, so no more than one waits. What goes wrong is raised by
    the next method.
    """

    folder: Path
    """`rollouts` of the run's folder."""
    rank: int
    """Whose groups these are; rank 0 also has those that were not trained on."""
    keep: int
    """Committed steps whose files stay; 0 keeps all."""
    check: Callable[[], None] = lambda: None
    """Called before a file of its own name appears; raises where it must not."""
    timeout_s: float = 0.0
    """Longest wait for room on a full disk."""

    def __post_init__(self) -> None:
        self._room = RoomWait(self.folder, self.timeout_s, self.check)
        self._thread = ThreadPoolExecutor(1, "rollouts")
        self._written: Future[list[IndexLine]] | None = None
        """The lines of the step's last `write`."""
        self._indexed: Future[None] | None = None
        name = f"index.rank{self.rank}.jsonl"
        self._index = StepLines(self.folder / name, aside=self.folder / "rolled_back" / name)
        """A line a group; see `services.run_folder.index_line`."""

    def write(
        self, step: int, groups: Sequence[TrainGroup], policy_logprobs: Sequence[Sequence[float]]
    ) -> None:
        """Write a step, in place of what an attempt that was skipped has left.

        Args:
            step: From 0.
            groups: This rank's.
            policy_logprobs: [completion][token], in the order of the groups.

        Raises:
            WaitTimeoutError: The disk stayed full.
        """
        self.wait()
        self.check()
        name = f"step-{step:06d}.rank{self.rank}.jsonl.gz"

        def write() -> list[IndexLine]:
            return self._write(name, _trained_records(step, groups, policy_logprobs))

        self._written = self._thread.submit(write)

    def finish(self, step: int, unused: Iterable[UnusedGroup]) -> None:
        """The step is done: its groups come into the index.

        Args:
            step: That `write` wrote last.
            unused: Groups that its ledger line names and that were not trained on; rank 0's.

        Raises:
            WaitTimeoutError: The disk stayed full.
        """
        self.check()
        self._indexed = self._thread.submit(self._finish, step, list(unused), self._written)
        self._written = None

    def wait(self) -> None:
        """Until all of it is written.

        Raises:
            WaitTimeoutError: The disk stayed full.
        """
        for job in (self._written, self._indexed):
            if job is not None:
                job.result()

    def sync(self) -> None:
        """Have all of it on disk."""
        self.wait()
        self._index.sync()
        if self.folder.exists():
            sync(self.folder)

    def close(self) -> None:
        """Wait, and end the thread."""
        self._thread.shutdown()
        self.wait()

    def cut_to(self, step: int) -> None:
        """Move the groups of steps from `step` on to `rolled_back/`, in place of earlier ones."""
        self.wait()
        for draft in self.folder.glob("step-*.draft-*"):  # of a killed trainer
            if self._is_mine(draft):
                draft.unlink(missing_ok=True)
        for number, file in self._files(self.folder):
            if number >= step:
                aside = self.folder / "rolled_back"
                aside.mkdir(exist_ok=True)
                file.replace(aside / file.name)
        self._index.cut_to(step)

    def committed(self, step: int) -> None:
        """Remove what is over `keep`. Steps that a resume would do again are not counted.

        The index keeps their lines.
        """
        self.wait()
        for folder in (self.folder, self.folder / "rolled_back"):
            for number, file in self._files(folder):
                if self.keep and number < step - self.keep:
                    file.unlink()

    def _finish(
        self, step: int, unused: list[UnusedGroup], written: Future[list[IndexLine]] | None
    ) -> None:
        trained = written.result() if written is not None else []
        lines = [line_without_answers(each, step) for each in unused if each.group is None]
        records = [_unused_record(each, each.group, step) for each in unused if each.group]
        if records:
            lines += self._write(f"step-{step:06d}.unused.jsonl.gz", records)
        lines = sorted([*trained, *lines], key=lambda line: line.position)
        self._room.write(lambda: self._index.append(*lines))

    def _write(self, name: str, records: Iterable[RolloutRecord]) -> list[IndexLine]:
        """Write a file whole or not at all; the lines of the index that say what is in it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        # Of its own: trainers in two containers may have one process number.
        draft = self.folder / f"{name.removesuffix('.jsonl.gz')}.draft-{uuid4().hex}"
        lines, bodies, offset = list[IndexLine](), list[bytes](), 0
        for record in records:
            bodies.append(packed(record))
            lines.append(index_line(record, name, offset, len(bodies[-1])))
            offset += len(bodies[-1])
        try:
            self._room.write(lambda: draft.write_bytes(b"".join(bodies)))
            sync(draft)
            self.check()
            draft.replace(self.folder / name)
        finally:
            draft.unlink(missing_ok=True)
        return lines

    def _files(self, folder: Path) -> Iterator[tuple[int, Path]]:
        for file in sorted(folder.glob("step-*.jsonl*")):
            if self._is_mine(file):
                yield int(file.name[len("step-") :].partition(".")[0]), file

    def _is_mine(self, file: Path) -> bool:
        """Whether this rank writes it: `step-000003.rank1.jsonl.gz`, or rank 0 `….unused.…`."""
        writer = file.name.split(".")[1]
        return writer == f"rank{self.rank}" or (writer == "unused" and self.rank == 0)


def _trained_records(
    step: int, groups: Sequence[TrainGroup], policy_logprobs: Sequence[Sequence[float]]
) -> Iterator[RolloutRecord]:
    logprobs = iter(policy_logprobs)
    for group in groups:
        yield RolloutRecord(
            step=step,
            policy_logprobs=[list(next(logprobs)) for _ in group.rollout.completions],
            trace_id=_trace_id(group),
            **dict(group),
        )


def _unused_record(unused: UnusedGroup, group: TrainGroup, step: int) -> RolloutRecord:
    return RolloutRecord(
        step=step,
        policy_logprobs=[],
        trace_id=_trace_id(group),
        state=unused.state,
        reason=unused.reason,
        **dict(group),
    )


def _trace_id(group: TrainGroup) -> str | None:
    traceparent = group.prompt.traceparent if group.prompt else None
    return traceparent.split("-")[1] if traceparent else None
