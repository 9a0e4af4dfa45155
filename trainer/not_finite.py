"""Steps whose numbers are not finite: which groups they come from, and when they end the run."""

import logging
import math
from collections.abc import Sequence

from services.errors import SggError
from services.schemas.groups import TrainGroup
from trainer.policy.updates import StepOutput
from trainer.ranks.group import Ranks
from trainer.types import StepBatch

logger = logging.getLogger(__name__)

MAX_SKIPPED = 5
"""Batches in a row that give no step, after which the run ends."""
_NUM_LISTED = 8


class NotFiniteError(SggError):
    """The policy gives no finite numbers; the message names groups."""


def explain_skipped(
    step: int,
    skipped: Sequence[StepBatch],
    groups: Sequence[TrainGroup],
    output: StepOutput,
    ranks: Ranks,
) -> None:
    """Name the groups of a skipped batch in the log; every rank calls it.

    Args:
        step: That is tried again.
        skipped: The step's batches so far that gave no finite numbers.
        groups: This rank's, of the last of them.
        output: What the engine said of them.
        ranks: The trainer's.

    Raises:
        NotFiniteError: `MAX_SKIPPED` batches in a row gave none.
    """
    mine = not_finite(groups, output.policy_logprobs)
    others = ranks.gather(None if ranks.is_main else mine, list[str])

    def tell() -> None:
        names = [name for each in (mine, *others) for name in each]
        where = (
            f"log-probabilities of {_listed(names)} are not finite"
            if names
            else f"the loss or a gradient of {_listed(_ids(skipped[-1].groups))} is not finite"
        )
        logger.warning("step %d is skipped, and tried with other groups: %s", step, where)
        if len(skipped) == MAX_SKIPPED:
            raise NotFiniteError(
                f"step {step} was skipped {len(skipped)} times in a row, the last time because "
                f"{where}. Look at their images and rewards (sgg-rl rollouts <run> --step {step}); "
                "if groups of all kinds fail, go back to an earlier checkpoint with a lower "
                "trainer.learning_rate (docs/operations.md)"
            )

    ranks.from_main(tell, None)


def explain_skipped_updates(
    step: int, groups: Sequence[TrainGroup], output: StepOutput, ranks: Ranks
) -> tuple[list[str], str]:
    """Say in the log which updates of a step were skipped; every rank calls it.

    Args:
        step: Other updates of which were made.
        groups: This rank's.
        output: What the engine said of them.
        ranks: The trainer's.

    Returns:
        On rank 0 the ids of the groups that no update has learnt from, of all ranks; elsewhere this
        rank's. And what was said.
    """
    num_mini_batches = len(output.grad_norms[0])
    size = len(groups) // num_mini_batches
    places = output.skipped_mini_batches
    mine = _ids([group for i in places for group in groups[i * size : (i + 1) * size]])
    others = ranks.gather(None if ranks.is_main else mine, list[str])
    names = [name for each in (mine, *others) for name in each]
    num_updates = len(output.grad_norms) * num_mini_batches
    said = (
        f"{output.num_skipped_updates} of {num_updates} updates of step {step} were skipped, since "
        "a number was not finite"
    )
    if names:
        said += f": nothing was learnt from {_listed(names)}"
    if ranks.is_main:
        logger.warning(said)
    return names, said


def not_finite(
    groups: Sequence[TrainGroup], policy_logprobs: Sequence[Sequence[float]]
) -> list[str]:
    """Ids of groups with a log-probability that is not finite.

    Args:
        groups: One rank's.
        policy_logprobs: [completion][token], in the order of the groups.
    """
    rows = iter(policy_logprobs)
    finite = [[all(map(math.isfinite, next(rows))) for _ in g.rollout.completions] for g in groups]
    return _ids([group for group, each in zip(groups, finite, strict=True) if not all(each)])


def _ids(groups: Sequence[TrainGroup]) -> list[str]:
    return [group.rollout.group_id for group in groups]


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _NUM_LISTED
    return ", ".join(names[:_NUM_LISTED]) + (f" and {more} more groups" if more > 0 else "")
