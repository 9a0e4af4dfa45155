"""The groups that a run was trained on, whole, for people and for tests."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ConfigDict, ValidationError

from services.errors import InvalidInputError
from services.run_folder import RunFolder
from services.waiting import RoomWait
from trainer.types import TrainGroup


class RolloutRecord(TrainGroup):
    """A line of `rollouts/step-NNNNNN.rankR.jsonl`: all that a group's part of a loss is made of.

    Example, shortened: `{"step": 3, "position": 14, "index": 9, "prompt": {"messages": […],
    "images": [{"sha256": "9f86…0a08", …}], …}, "rollout":
    {"group_id": "demo-e0-r9", "completions": [{"text": "<answer>…", "token_ids": […],
    "rollout_logprobs": […], "finish_reason": "stop", "policy_versions": […]}, …], …}, "rewards":
    [{"total": 7.1, "breakdown": {"edge": 0.5, …}, "status": "ok", …}, …], "advantages": [0.9, …],
    "policy_logprobs": [[-0.1, …], …], "trace_id": "4bf9…4736"}`
    """

    # A policy that has diverged has NaN, which JSON has not.
    model_config = ConfigDict(allow_inf_nan=True, ser_json_inf_nan="null")

    step: int
    """From 0; also the policy_version that was trained."""
    policy_logprobs: list[list[float | None]]
    """[completion][token] of the trainer before the step's update; null where it is not finite."""
    trace_id: str | None
    """The trace of the group's spans, 32 hexadecimal digits; None where nothing was traced."""


@dataclass
class RolloutFiles:
    """One file a step, of one rank."""

    folder: Path
    """`rollouts` of the run's folder."""
    rank: int
    """Whose groups these are."""
    keep: int
    """Committed steps whose files stay; 0 keeps all."""
    check: Callable[[], None] = lambda: None
    """Called before a file of its own name appears; raises where it must not."""
    timeout_s: float = 0.0
    """Longest wait for room on a full disk."""

    def __post_init__(self) -> None:
        self._room = RoomWait(self.folder, self.timeout_s)

    def write(
        self, step: int, groups: Sequence[TrainGroup], policy_logprobs: Sequence[Sequence[float]]
    ) -> None:
        """Write a step.

        Args:
            step: From 0.
            groups: This rank's.
            policy_logprobs: [completion][token], in the order of the groups.

        Raises:
            WaitTimeoutError: The disk stayed full.
        """
        logprobs = iter(policy_logprobs)
        records = [
            RolloutRecord(
                step=step,
                policy_logprobs=[list(next(logprobs)) for _ in group.rollout.completions],
                trace_id=_trace_id(group),
                **{name: getattr(group, name) for name in TrainGroup.model_fields},
            )
            for group in groups
        ]
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / f"step-{step:06d}.rank{self.rank}.jsonl"
        draft = file.with_suffix(f".draft-{os.getpid()}")
        text = "".join(record.model_dump_json() + "\n" for record in records)
        try:
            self._room.write(lambda: draft.write_text(text))
            self.check()
            draft.replace(file)
        finally:
            draft.unlink(missing_ok=True)

    def cut_to(self, step: int) -> None:
        """Move the groups of steps from `step` on to `rolled_back/`, in place of earlier ones."""
        for draft in self.folder.glob(f"step-*.rank{self.rank}.draft-*"):  # of a killed trainer
            draft.unlink(missing_ok=True)
        for number, file in _files(self.folder, self.rank):
            if number >= step:
                aside = self.folder / "rolled_back"
                aside.mkdir(exist_ok=True)
                file.replace(aside / file.name)

    def committed(self, step: int) -> None:
        """Remove what is over `keep`. Steps that a resume would do again are not counted."""
        for folder in (self.folder, self.folder / "rolled_back"):
            for number, file in _files(folder, self.rank):
                if self.keep and number < step - self.keep:
                    file.unlink()


def _files(folder: Path, rank: int) -> Iterator[tuple[int, Path]]:
    for file in sorted(folder.glob(f"step-*.rank{rank}.jsonl")):
        yield int(file.name[len("step-") :].partition(".")[0]), file


def _trace_id(group: TrainGroup) -> str | None:
    traceparent = group.prompt.traceparent if group.prompt else None
    return traceparent.split("-")[1] if traceparent else None


def read_rollouts(run: Path, step: int) -> list[RolloutRecord]:
    """The groups of a step, of all ranks, by their place in the data order.

    Raises:
        InvalidInputError: A line is cut or damaged.
    """
    records = [record for file in RunFolder(run).rollout_files(step) for record in _records(file)]
    return sorted(records, key=lambda record: record.position)


def _records(file: Path) -> Iterator[RolloutRecord]:
    # As bytes: sampled text may have characters that end a line of text, and none of JSON's.
    for number, line in enumerate(file.read_bytes().splitlines(), start=1):
        try:
            yield RolloutRecord.model_validate_json(line)
        except ValidationError as error:
            raise InvalidInputError(
                f"{file}:{number} is cut or damaged: {error.errors()[0]['msg']}"
            ) from error
