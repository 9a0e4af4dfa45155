"""Model FLOPs of a training step, for its share of a device's peak (MFU).

As in PaLM (arXiv 2204.02311, appendix B): what the model's formulas take, whoever computes them;
recomputation of checkpointed activations is not counted, nor are pairs that a mask hides.
"""

from collections.abc import Mapping, Sequence


def causal_pairs(length: int) -> int:
    """Pairs of a token and one that it sees, itself among them, in a causal sequence."""
    return length * (length + 1) // 2


def visible_pairs(prompt: int, answers: Sequence[int]) -> int:
    """The same in a group: the prompt sees itself, each completion the prompt and itself."""
    return causal_pairs(prompt) + sum(n * prompt + causal_pairs(n) for n in answers)


def step_flops(work: Mapping[str, float]) -> float:
    """FLOPs of a step, forward and backward.

    A product of n weights with a token takes 2 n FLOPs forward and 4 n backward. A visible pair
    takes two products of `hidden_size` numbers in each layer, forward, and twice that backward.

    Args:
        work: Parameters of the `layers` of text, of the `vision` tower and of the `head`;
            `model_tokens` that pass the layers, `image_tokens` of four patches each,
            `scored_tokens` that pass the head; `attention`: layers times hidden size times visible
            pairs.
    """
    products = (
        work["layers"] * work["model_tokens"]
        + work["vision"] * 4 * work["image_tokens"]
        + work["head"] * work["scored_tokens"]
    )
    return 6 * products + 12 * work["attention"]
