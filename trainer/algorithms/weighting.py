"""How much each token counts, so that micro batches of any size add up to the step's mean."""

from collections.abc import Sequence

from services.trainer_settings import LossName


def completion_weights(loss: LossName, lengths: Sequence[int], *, max_tokens: int) -> list[float]:
    """The weight of each of a completion's tokens, for all completions of a step.

    Every rank knows the whole step, so nothing has to be gathered for it.

    Args:
        loss: Of the run.
        lengths: Tokens of each completion of the step, over all ranks.
        max_tokens: `sampling.max_tokens`.

    Returns:
        One weight for each completion; its tokens share it.
    """
    return [1 / (len(lengths) * length) for length in lengths]
