"""How much each token counts, so that micro batches of any size add up to an update's mean."""

from collections.abc import Sequence

from services.settings.training import AlgorithmSettings


def completion_weights(
    algorithm: AlgorithmSettings,
    lengths: Sequence[int],
    truncated: Sequence[bool],
    *,
    max_tokens: int,
) -> list[float]:
    """The weight of each of a completion's tokens, for all completions of a step.

    With N completions of |o_i| tokens, over all ranks:

        grpo, gspo, sapo   1 / (N |o_i|)       DeepSeekMath (arXiv 2402.03300), equation 3
        dapo, cispo, bnpo  1 / sum_j |o_j|     DAPO (arXiv 2503.14476), equation 8
        dr_grpo            1 / (N max_tokens)  Dr. GRPO (arXiv 2503.20783), section 3.2 and its code

    times `num_mini_batches`: each of these is the loss of an update. As in TRL, a token of dapo,
    cispo and bnpo weighs the same in each of them, whatever else is in it.

    Every rank knows the whole step, so nothing has to be gathered for it.

    Truncated completions weigh 0 with `mask_truncated` (DAPO, section 3.4). As in TRL, N still
    counts them, and the sum of tokens does not.

    Deviation: TRL means over a device's batch, then over accumulated batches and devices. That is
    the same for grpo, gspo and dr_grpo while all batches have one size, and for dapo and cispo
    always. Its bnpo divides by the tokens of a device's batch, so that the loss depends on how a
    step is cut; here the batch is the step, and bnpo is dapo.

    Args:
        algorithm: The run's.
        lengths: Tokens of each completion of the step, over all ranks.
        truncated: For each, whether it was cut at `max_tokens`.
        max_tokens: `sampling.max_tokens`.

    Returns:
        One weight for each completion; its tokens share it.
    """
    kept = [not (algorithm.mask_truncated and cut) for cut in truncated]
    if algorithm.loss in ("grpo", "gspo", "sapo"):
        counts = [len(lengths) * length for length in lengths]
    elif algorithm.loss == "dr_grpo":
        counts = [len(lengths) * max_tokens] * len(lengths)
    else:
        tokens = sum(length for length, keep in zip(lengths, kept, strict=True) if keep)
        counts = [tokens] * len(lengths)
    parts = algorithm.num_mini_batches
    return [parts * keep / max(count, 1) for keep, count in zip(kept, counts, strict=True)]
