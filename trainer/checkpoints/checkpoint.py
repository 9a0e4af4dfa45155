"""Checkpoints that are whole or absent."""

import errno
import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ConfigDict, Field

from services.errors import SettingsError, SggError, SupersededError
from services.host.environment import start_command
from services.host.sync import sync
from services.schemas.common import Message
from services.schemas.versions import Versioned, parse
from services.waiting import RoomWait
from trainer.checkpoints.manifest import damage, write_manifest
from trainer.collection.cursor import CursorState
from trainer.ranks.group import Ranks
from trainer.ranks.write_guard import WriteGuard

logger = logging.getLogger(__name__)

STATE_FILE = "trainer.json"


class DataOrder(Message):
    """What decides which group a position of the cursor is.

    Example: `{"seed": 0, "num_rows": 57723, "group_size": 8}`
    """

    seed: int
    num_rows: int
    """Usable ones of the training set."""
    group_size: int

    model_config = ConfigDict(extra="ignore")
    """Earlier releases wrote an `instruction` here, which `TrainerState.inputs` has now."""


class TrainerState(Versioned):
    """What a run has committed, beside weights and optimizer.

    Example: `{"step": 40, "cursor": {"low": 640, "ahead": []}, "incarnation": 1, "num_ranks": 2,
    "data_order": {"seed": 0, "num_rows": 57723, "group_size": 8}}`
    """

    step: int = 0
    """Optimizer steps done; also the policy_version of the weights."""
    cursor: CursorState = CursorState()
    incarnation: int = 0
    """The start that wrote this."""
    num_ranks: int = 1
    data_order: DataOrder | None = None
    inputs: dict[str, str] = Field(default_factory=dict)
    """What the run learned from (`trainer.checkpoints.inputs`)."""


class CheckpointStore:
    """Folders `step-000040` under one root.

    A folder appears by a rename once all that is in it is on disk. What else may happen to it
    (files that were deleted, copied in part, cut by a full disk) its manifest shows.

    Args:
        root: Created when needed.
        keep: How many of the newest stay.
        guard: Shuts out a trainer that was taken for dead.
        timeout_s: Longest wait for room for one more of the size of the last.
    """

    def __init__(self, root: Path, keep: int, guard: WriteGuard, timeout_s: float = 0.0) -> None:
        self.root = root
        self._keep = keep
        self._guard = guard
        self._room = RoomWait(root, timeout_s)

    def is_empty(self) -> bool:
        """Whether nothing was ever written."""
        return not self._folders()

    def latest(self) -> tuple[Path, TrainerState] | None:
        """The newest whole checkpoint; None when there never was one.

        Raises:
            SettingsError: There are checkpoints, and all of them are damaged.
        """
        reasons = []
        for folder in self._folders():
            if (wrong := damage(folder)) is None:
                text = (folder / STATE_FILE).read_text()
                return folder, parse(TrainerState, text)
            reasons.append(f"{folder.name}: {wrong}")
            logger.warning("%s is torn and is skipped: %s", folder, wrong)
        if reasons:
            raise SettingsError(
                f"--resume: no checkpoint in {self.root} is whole ({'; '.join(reasons)}): put one "
                "back, or remove the folder to start from step 0"
            )
        return None

    def remove_drafts(self) -> None:
        """What a killed trainer left behind."""
        for draft in self.root.glob(".draft-*"):
            logger.info("removed %s, which was never finished", draft)
            shutil.rmtree(draft, ignore_errors=True)

    def write(self, state: TrainerState, save: Callable[[Path], None], ranks: Ranks) -> None:
        """Write one; every rank calls it and has returned from it when it is on disk.

        Args:
            state: Rank 0's; others' is ignored.
            save: Puts a rank's part into the folder it is given.
            ranks: The trainer's.

        Raises:
            WaitTimeoutError: There was no room for it.
            SggError: It could not be written; earlier ones are untouched.
            SupersededError: A later trainer of this run has started.
        """
        state = ranks.from_main(lambda: self._allowed(state), TrainerState)
        draft = self.root / f".draft-{state.step:06d}-{state.incarnation}"
        with self._said(draft, state.step):
            if ranks.is_main:
                shutil.rmtree(draft, ignore_errors=True)
                self._room.write(self._find_room)
                draft.mkdir(parents=True)
            ranks.barrier()
            save(draft)
            ranks.barrier()
            if ranks.is_main:
                self._finish(draft, state)
        ranks.barrier()

    def _allowed(self, state: TrainerState) -> TrainerState:
        self._guard.check()
        return state

    def _find_room(self) -> None:
        """See that there is room for one of the size of the last; nothing is known of the first."""
        last = next(iter(self._folders()), None)
        if last is None:
            return
        size = sum(file.stat().st_size for file in last.rglob("*"))
        if shutil.disk_usage(self.root).free < size:
            raise OSError(errno.ENOSPC, f"a checkpoint takes {size / 2**20:.1f} MiB")

    def _finish(self, draft: Path, state: TrainerState) -> None:
        (draft / STATE_FILE).write_text(state.model_dump_json(indent=1))
        write_manifest(draft)
        for path in [*draft.rglob("*"), draft]:
            sync(path)
        try:
            self._guard.check()
        except SupersededError:
            shutil.rmtree(draft)
            raise
        final = self.root / f"step-{state.step:06d}"
        self._remove(final)
        draft.rename(final)
        sync(self.root)
        for old in [f for f in self._folders() if damage(f) is None][self._keep :]:
            self._remove(old)

    @contextmanager
    def _said(self, draft: Path, step: int) -> Iterator[None]:
        """Say what a failed write means, and give its room back."""
        try:
            yield
        except (OSError, RuntimeError) as error:
            # torch reports a full disk as a RuntimeError of its zip writer.
            if isinstance(error, RuntimeError) and "inline_container" not in str(error):
                raise
            shutil.rmtree(draft, ignore_errors=True)
            left = next((f.name for f in self._folders() if damage(f) is None), "none")
            raise SggError(
                f"the checkpoint after step {step} could not be written to {self.root}: {error}. "
                f"The last whole one is {left}: make room, and go on from it with "
                f"`{start_command('--resume')}`"
            ) from error

    def _folders(self) -> list[Path]:
        """Newest first."""
        return sorted(self.root.glob("step-*"), reverse=True)

    def _remove(self, folder: Path) -> None:
        """By a rename first: a kill in the middle leaves a draft, not a torn checkpoint."""
        if folder.exists():
            doomed = folder.with_name(f".draft-old-{folder.name}")
            shutil.rmtree(doomed, ignore_errors=True)
            folder.rename(doomed)
            shutil.rmtree(doomed)
