"""A step's batch cut into what each rank trains, and how that travels.

Rank 0 has the batch. It plans for all ranks, and each of them gets its own groups, for no rank
reads what it does not train.
"""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, repeat

import msgspec
from pydantic import TypeAdapter

from services.schemas.groups import TrainGroup
from trainer.batches.micro_batches import RankPlan, plan_metrics, plan_step


@dataclass(frozen=True, slots=True, kw_only=True)
class RankBatch:
    """One rank's part of a step's batch."""

    plan: RankPlan
    groups: list[TrainGroup]
    """In the order of `plan.groups`."""
    weights: list[list[float]]
    """[groups][G] of the tokens of each completion (`algorithms.weighting`)."""
    metrics: dict[str, float]
    """`micro_batches.plan_metrics` of all ranks."""


def share_out(
    groups: Sequence[TrainGroup],
    weights: Sequence[Sequence[float]],
    *,
    num_ranks: int,
    max_tokens: int,
    num_mini_batches: int = 1,
) -> list[RankBatch]:
    """Plan a step, and cut its batch by the plan.

    Args:
        groups: The whole step's.
        weights: [groups][G] of the tokens of each completion.
        num_ranks: As `plan_step`.
        max_tokens: As `plan_step`.
        num_mini_batches: As `plan_step`.

    Returns:
        A part for each rank.
    """
    plans = plan_step(
        groups, num_ranks=num_ranks, max_tokens=max_tokens, num_mini_batches=num_mini_batches
    )
    metrics = plan_metrics(plans)
    return [
        RankBatch(
            plan=plan,
            groups=[groups[place] for place in plan.groups],
            weights=[list(weights[place]) for place in plan.groups],
            metrics=metrics,
        )
        for plan in plans
    ]


_JSON = TypeAdapter(RankBatch)
_PACKED = msgspec.msgpack.Decoder(tuple[bytes, list[list[int]], bytes, bytes])


def pack(part: RankBatch) -> bytes:
    """A part as bytes, exactly.

    MessagePack of four: JSON in which all lists of tokens are empty; the lengths of these lists,
    [groups][1 + G]; all token ids, of 4 bytes each; all logprobs, of 8. As JSON a number has up to
    20.
    """
    lengths, ids, logprobs = list[list[int]](), array("i"), array("d")
    for rollout in (group.rollout for group in part.groups):
        lists = [rollout.prompt_token_ids, *(each.token_ids for each in rollout.completions)]
        lengths.append([len(each) for each in lists])
        for each in lists:
            ids.extend(each)
        for completion in rollout.completions:
            logprobs.extend(completion.rollout_logprobs)
    bare = [_with_tokens(group, repeat([]), repeat([])) for group in part.groups]
    text = _JSON.dump_json(replace(part, groups=bare))
    return msgspec.msgpack.encode((text, lengths, ids.tobytes(), logprobs.tobytes()))


def unpack(body: bytes) -> RankBatch:
    """The part that was packed."""
    text, lengths, packed_ids, packed_logprobs = _PACKED.decode(body)
    ids, logprobs = iter(array("i", packed_ids)), iter(array("d", packed_logprobs))
    all_ids = (list(islice(ids, n)) for of_group in lengths for n in of_group)
    all_logprobs = (list(islice(logprobs, n)) for _, *answers in lengths for n in answers)
    part = _JSON.validate_json(text)
    groups = [_with_tokens(group, all_ids, all_logprobs) for group in part.groups]
    return replace(part, groups=groups)


def _with_tokens(
    group: TrainGroup, ids: Iterator[list[int]], logprobs: Iterator[list[float]]
) -> TrainGroup:
    """The group with the next lists: ids of the prompt, then of each completion; logprobs."""
    rollout = group.rollout
    changes = {
        "prompt_token_ids": next(ids),
        "completions": [
            c.model_copy(update={"token_ids": next(ids), "rollout_logprobs": next(logprobs)})
            for c in rollout.completions
        ],
    }
    return group.model_copy(update={"rollout": rollout.model_copy(update=changes)})
