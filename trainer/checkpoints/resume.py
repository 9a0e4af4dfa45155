"""Where a start of the trainer begins."""

import logging
from collections.abc import Callable
from pathlib import Path

from services.errors import SettingsError
from trainer.checkpoints.checkpoint import CheckpointStore, TrainerState
from trainer.checkpoints.inputs import check_inputs
from trainer.ranks.group import Ranks

logger = logging.getLogger(__name__)


def restore(
    checkpoints: CheckpointStore,
    load: Callable[[Path], None],
    ranks: Ranks,
    now: TrainerState,
    take: Callable[[int], int],
    *,
    resume: bool,
    allow_changes: bool = False,
) -> TrainerState:
    """Shut earlier starts out, and load the last whole checkpoint; every rank calls it.

    Rank 0 looks and decides, so that no two ranks load different ones. It looks twice: before, so
    that a wrong start shuts nobody out, and after, since an earlier start, which may live, may have
    written one until then.

    Args:
        checkpoints: The run's.
        load: Takes weights, optimizer and random state from a folder; every rank calls it.
        ranks: The trainer's.
        now: Step 0 of the present settings; rank 0's counts.
        take: Makes a number higher than the given one this start's; every rank calls it.
        resume: Whether to look for a checkpoint at all.
        allow_changes: Go on where the inputs are others than the checkpoint's.

    Returns:
        `now`, at the checkpoint's step or at step 0, with this start's number.

    Raises:
        SettingsError: The checkpoint is of other settings, or none is whole, or there are some and
            nobody asked to go on from them.
    """

    def decide() -> tuple[Path | None, TrainerState]:
        found = _last(checkpoints, resume=resume)
        if found is None:
            return None, now
        folder, then = found
        _check_same(folder, then, now)
        check_inputs(then.inputs, now.inputs, folder, allow_changes=allow_changes)
        incarnation = max(then.incarnation, now.incarnation)
        place = {"step": then.step, "cursor": then.cursor, "incarnation": incarnation}
        return folder, now.model_copy(update=place)

    def decide_again() -> tuple[Path | None, TrainerState]:
        checkpoints.remove_drafts()
        return decide()

    _, state = ranks.from_main(decide, tuple[Path | None, TrainerState])
    incarnation = take(state.incarnation)
    folder, state = ranks.from_main(decide_again, tuple[Path | None, TrainerState])
    if folder is None:
        logger.info("nothing to resume in %s: starting at step 0", checkpoints.root)
    else:
        load(folder)
        logger.info("resumed from %s", folder)
    return state.model_copy(update={"incarnation": incarnation})


def _last(checkpoints: CheckpointStore, *, resume: bool) -> tuple[Path, TrainerState] | None:
    if not resume:
        if checkpoints.is_empty():
            return None
        raise SettingsError(
            f"{checkpoints.root} has checkpoints of a run of this name: add --resume to go on from "
            "the last one, give this run another run.name, or move the folder away"
        )
    return checkpoints.latest()


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
