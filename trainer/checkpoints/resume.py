"""Where a start of the trainer begins."""

import logging
from pathlib import Path
from typing import Protocol

from services.errors import SettingsError, SggError
from services.schemas.common import Message
from trainer.checkpoints.checkpoint import CheckpointStore, DataOrder, TrainerState
from trainer.checkpoints.inputs import Inputs, check_inputs
from trainer.ranks.group import Ranks
from trainer.write_guard import WriteGuard

logger = logging.getLogger(__name__)


class Loads(Protocol):
    """The part of the engine that a resumed run needs."""

    def load_state(self, folder: Path) -> None:
        """Weights, optimizer and random state; every rank calls it."""


class Start(Message):
    """What rank 0 has decided."""

    folder: str | None
    """The checkpoint; None for step 0."""
    state: TrainerState


def restore(
    checkpoints: CheckpointStore,
    guard: WriteGuard,
    engine: Loads,
    ranks: Ranks,
    order: DataOrder,
    inputs: Inputs,
    *,
    resume: bool,
    allow_changes: bool = False,
) -> TrainerState:
    """Load the last whole checkpoint, or begin at step 0; every rank calls it.

    Rank 0 looks and decides, so that no two ranks load different ones.

    Args:
        checkpoints: Of the run.
        guard: Of the run.
        engine: Loads weights, optimizer and random state.
        ranks: The trainer's.
        order: Of the data, by the present settings.
        inputs: Of the present settings; rank 0's.
        resume: Whether to look for a checkpoint at all.
        allow_changes: Go on where the inputs are others than the checkpoint's.

    Raises:
        SettingsError: The checkpoint is of other settings, or none is whole, or there are some and
            nobody asked to go on from them.
    """
    found: Start | SggError | None = None
    if ranks.is_main:
        try:
            found = _decide(checkpoints, guard, ranks.size, order, resume=resume)
            if found.folder is not None:
                then = found.state.inputs
                check_inputs(then, inputs, found.folder, allow_changes=allow_changes)
        except SggError as error:
            found = error
    start = ranks.broadcast(found, Start)
    if start.folder is not None:
        engine.load_state(Path(start.folder))
        logger.info("resumed from %s", start.folder)
    return start.state


def _decide(
    checkpoints: CheckpointStore,
    guard: WriteGuard,
    num_ranks: int,
    order: DataOrder,
    *,
    resume: bool,
) -> Start:
    checkpoints.remove_drafts()
    beginning = TrainerState(incarnation=guard.latest(), num_ranks=num_ranks, data_order=order)
    if not resume and not checkpoints.is_empty():
        raise SettingsError(
            f"{checkpoints.root} has checkpoints of a run of this name: add --resume to go on from "
            "the last one, give this run another run.name, or move the folder away"
        )
    found = checkpoints.latest() if resume else None
    if found is None:
        if resume:
            logger.info("nothing to resume in %s: starting at step 0", checkpoints.root)
        return Start(folder=None, state=beginning)
    folder, state = found
    _check_same(folder, state, beginning)
    incarnation = max(state.incarnation, beginning.incarnation)
    return Start(folder=str(folder), state=state.model_copy(update={"incarnation": incarnation}))


def _check_same(folder: Path, then: TrainerState, now: TrainerState) -> None:
    """A position of the cursor, and a rank's part of the optimizer, must mean the same."""
    old, new = then.data_order, now.data_order
    assert new is not None
    pairs: list[tuple[str, object, object]] = [("trainer.num_ranks", then.num_ranks, now.num_ranks)]
    if old is not None:
        pairs += [
            ("run.seed", old.seed, new.seed),
            ("trainer.group_size", old.group_size, new.group_size),
            ("the number of usable rows of data.train", old.num_rows, new.num_rows),
        ]
    for name, before, after in pairs:
        if before != after:
            raise SettingsError(
                f"--resume: {name} was {before} when {folder} was written and is {after} now: "
                f"resume with {before}, or start another run with another run.name"
            )
