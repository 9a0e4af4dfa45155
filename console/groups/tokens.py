"""A completion's tokens: how likely sampler and trainer found each, and which the clip held."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from services.errors import InvalidInputError
from services.printable import printable
from services.schemas.groups import TrainGroup
from services.schemas.rollouts import Completion
from services.settings.training import AlgorithmSettings
from trainer.batches.token_credit import token_advantages

Clipped = Literal["", "low", "high"]
MAX_TOKENS = 4_000
"""Rows of a page"""
_STEPS = (0.02, 0.1, 0.4)
"""Absolute log-ratios from which a token has a stronger colour"""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRow:
    """One token. Log-probabilities are natural."""

    index: int
    token_id: int
    text: str
    sampler: float
    trainer: float | None
    """Before the step's update; None where it was not finite, or the group was not trained on"""
    ratio: float | None
    """exp(trainer - sampler)"""
    version: int | None
    """That sampled it"""
    advantage: float | None
    """That it was trained with: its element's, or the answer's; None where that is not known"""
    clipped: Clipped
    """At which bound the token is held, so that it has no gradient (of cispo: a bounded weight)"""

    @property
    def shade(self) -> str:
        """Its colour's class by how far the ratio is from 1: `up1` to `up3`, `down1` to `down3`."""
        if self.trainer is None:
            return "unknown"
        gap = self.trainer - self.sampler
        strength = sum(abs(gap) >= step for step in _STEPS)
        return f"{'up' if gap > 0 else 'down'}{strength}" if strength else ""


def token_rows(
    completion: Completion,
    trainer: Sequence[float | None],
    advantages: Sequence[float],
    algorithm: AlgorithmSettings,
    texts: Sequence[str] | None = None,
) -> list[TokenRow]:
    """A row for each of the first `MAX_TOKENS` tokens.

    Args:
        completion: Of L tokens.
        trainer: [L] log-probabilities; empty for a group that was not trained on.
        advantages: [L], too; empty where they are not known.
        algorithm: The run's: has the clip's bounds.
        texts: [L] of each token; without them a token is its number.
    """
    ids, known = completion.token_ids, len(trainer) == len(completion.token_ids)
    found = list(trainer) if known else [None] * len(ids)
    gaps = [
        None if one is None else one - other
        for one, other in zip(found, completion.rollout_logprobs, strict=True)
    ]
    clipped = _clipped(gaps, advantages, algorithm)
    versions = _versions(completion)
    return [
        TokenRow(
            index=i,
            token_id=ids[i],
            text=printable(texts[i]) if texts else f"#{ids[i]} ",
            sampler=completion.rollout_logprobs[i],
            trainer=found[i],
            ratio=_exp(gaps[i]),
            version=versions[i],
            advantage=advantages[i] if advantages else None,
            clipped=clipped[i],
        )
        for i in range(min(len(ids), MAX_TOKENS))
    ]


def _clipped(
    gaps: Sequence[float | None], advantages: Sequence[float], algorithm: AlgorithmSettings
) -> list[Clipped]:
    """Where `trainer.algorithms.surrogates` holds the ratio; see there."""
    nowhere: list[Clipped] = [""] * len(gaps)
    known = [gap for gap in gaps if gap is not None]
    if algorithm.old_logprobs == "trainer" or len(known) < len(gaps) or not advantages:
        return nowhere  # ratios are 1 in the first update, or not known
    if algorithm.loss == "gspo" and known:
        known = [math.fsum(known) / len(known)] * len(known)
    ratios = [_exp(gap) or 0.0 for gap in known]
    return [_bound(*pair, algorithm) for pair in zip(ratios, advantages, strict=True)]


def _bound(ratio: float, advantage: float, algorithm: AlgorithmSettings) -> Clipped:
    if algorithm.loss == "sapo":
        return ""  # its gradient fades, and is never cut off
    if algorithm.delta and ratio > algorithm.delta and advantage < 0:
        return "high"
    if ratio > 1 + algorithm.clip_high and (advantage > 0 or algorithm.loss == "cispo"):
        return "high"
    if ratio < 1 - algorithm.clip_low and advantage < 0 and algorithm.loss != "cispo":
        return "low"
    return ""


def _exp(gap: float | None) -> float | None:
    return None if gap is None else math.exp(min(gap, 700.0))


def _versions(completion: Completion) -> list[int | None]:
    versions: list[int | None] = [None] * len(completion.token_ids)
    for span in completion.policy_versions:
        end = min(span.end, len(versions))
        versions[span.start : end] = [span.policy_version] * max(end - span.start, 0)
    return versions


def tokenizer_of(model: str) -> Any:
    """A model's `tokenizers.Tokenizer`; None where it is not at hand.

    Args:
        model: The model's folder.
    """
    return _tokenizer(Path(model) / "tokenizer.json")


def token_texts(tokenizer: Any, token_ids: Sequence[int]) -> list[str]:
    """The text of each token of a completion."""
    texts: list[str] = tokenizer.decode_batch(
        [[one] for one in token_ids], skip_special_tokens=False
    )
    return texts


def advantages_of_tokens(group: TrainGroup, number: int, tokenizer: Any) -> list[float]:
    """The advantage that each token was trained with; none where that is not known.

    Args:
        group: As it was recorded.
        number: The completion's, from 0.
        tokenizer: The model's, for advantages of elements; None where it is not at hand.
    """
    completion = group.rollout.completions[number]
    if number >= len(group.advantages):
        return []
    if not group.element_advantages:
        return [group.advantages[number]] * len(completion.token_ids)
    credit, places = group.rewards[number].credit, group.element_advantages[number]
    if tokenizer is None or credit is None or len(places) != len(credit.spans) + 1:
        return []
    try:
        return token_advantages(completion, credit, places, tokenizer)
    except InvalidInputError:  # the folder has another tokenizer by now
        return []


@lru_cache(maxsize=4)
def _tokenizer(file: Path) -> Any:
    if find_spec("tokenizers") is None or not file.is_file():
        return None
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(file))
    except Exception:  # noqa: BLE001 - the library raises nothing finer
        return None
