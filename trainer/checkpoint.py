"""Checkpoints that are whole or absent."""

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from services.schemas.common import Message
from trainer.cursor import CursorState
from trainer.ranks import Ranks

logger = logging.getLogger(__name__)

STATE_FILE = "trainer.json"


class TrainerState(Message):
    """What a run has committed, beside weights and optimizer.

    Example: `{"step": 40, "cursor": {"low": 640, "ahead": []}, "incarnation": 1, "num_ranks": 2}`
    """

    step: int = 0
    """Optimizer steps done; also the policy_version of the weights."""
    cursor: CursorState = CursorState()
    incarnation: int = 0
    """Of the start that wrote this."""
    num_ranks: int = 1


class CheckpointStore:
    """Folders `step-000040` under one root.

    A folder appears by a rename, so one that has its name is complete.

    Args:
        root: Created when needed.
        keep: How many of the newest stay.
    """

    def __init__(self, root: Path, keep: int) -> None:
        self._root = root
        self._keep = keep

    def latest(self) -> tuple[Path, TrainerState] | None:
        """The newest complete checkpoint."""
        for folder in sorted(self._root.glob("step-*"), reverse=True):
            file = folder / STATE_FILE
            if file.is_file():
                return folder, TrainerState.model_validate_json(file.read_text())
            logger.warning("%s is torn (no %s) and is skipped", folder, STATE_FILE)
        return None

    def write(self, state: TrainerState, save: Callable[[Path], None], ranks: Ranks) -> None:
        """Write one; every rank calls it and has returned from it when it is on disk.

        Args:
            state: Of rank 0.
            save: Puts a rank's part into the folder it is given.
            ranks: The trainer's.
        """
        final = self._root / f"step-{state.step:06d}"
        draft = self._root / f".draft-{state.step:06d}"
        if ranks.is_main:
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir(parents=True)
        ranks.barrier()
        save(draft)
        ranks.barrier()
        if ranks.is_main:
            (draft / STATE_FILE).write_text(state.model_dump_json(indent=1))
            _sync_tree(draft)
            shutil.rmtree(final, ignore_errors=True)
            draft.rename(final)
            _sync(self._root)
            self._remove_old()
        ranks.barrier()

    def _remove_old(self) -> None:
        for folder in sorted(self._root.glob("step-*"), reverse=True)[self._keep :]:
            shutil.rmtree(folder)


def _sync_tree(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
