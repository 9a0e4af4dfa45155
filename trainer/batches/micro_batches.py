"""Who trains what in a step, and in which mini and micro batches: from lengths alone, no tensors.

A *row* is one sequence of the model: a prompt and some of its group's completions, which share it.
Rank 0 makes the plan of all ranks (`trainer.batches.shares`).
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from services.schemas.groups import TrainGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedRow:
    """A prompt and some completions of its group.

    Example: `PackedRow(group=3, completions=(0, 1), length=912)`
    """

    group: int
    """Place in the batch."""
    completions: tuple[int, ...]
    """Places in the group, ascending."""
    length: int
    """Tokens: the prompt once, and each completion."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankPlan:
    """A rank's part of a step."""

    groups: list[int]
    """Places in the batch, ascending."""
    mini_batches: list[list[list[PackedRow]]]
    """[mini-batch][micro batch][row]: the updates of a step, and the rows of each forward and
    backward pass. As many passes on every rank: with ZeRO-3 each waits for all ranks."""

    @property
    def micro_batches(self) -> list[list[PackedRow]]:
        """Those of all mini-batches, one after another."""
        return [rows for mini_batch in self.mini_batches for rows in mini_batch]


def plan_step(
    groups: Sequence[TrainGroup], *, num_ranks: int, max_tokens: int, num_mini_batches: int = 1
) -> list[RankPlan]:
    """Cut a batch into mini-batches, share each out over ranks, and cut the shares further.

    Each mini-batch is the next part of the batch. In each, every rank gets as many groups, and
    about as many tokens.

    Args:
        groups: The whole step's; a multiple of `num_ranks` times `num_mini_batches`, all of one
            size.
        num_ranks: The trainer's processes.
        max_tokens: Most of a micro batch; a single completion with its prompt may be over it.
        num_mini_batches: `algorithm.num_mini_batches`

    Returns:
        A plan for each rank.
    """
    size = len(groups) // num_mini_batches
    parts = [
        _plan_part(groups, range(start, start + size), num_ranks, max_tokens)
        for start in range(0, len(groups), size)
    ]
    return [
        RankPlan(
            groups=sorted({row.group for part in of_rank for rows in part for row in rows}),
            mini_batches=list(of_rank),
        )
        for of_rank in zip(*parts, strict=True)
    ]


def num_tokens(rows: Sequence[PackedRow]) -> int:
    """Tokens of a micro batch."""
    return sum(row.length for row in rows)


def plan_metrics(plans: Sequence[RankPlan]) -> dict[str, float]:
    """How well a step is cut: micro batches of a rank, tokens of all ranks, and their balance."""
    by_rank = [sum(map(num_tokens, plan.micro_batches)) for plan in plans]
    return {
        "num_micro_batches": len(plans[0].micro_batches),
        "num_model_tokens": sum(by_rank),
        "rank_imbalance": max(by_rank) * len(plans) / sum(by_rank) - 1,
    }


def _plan_part(
    groups: Sequence[TrainGroup], places: Sequence[int], num_ranks: int, max_tokens: int
) -> list[list[list[PackedRow]]]:
    """[rank][micro batch][row] of one mini-batch."""
    rows = [_rows(place, groups[place], max_tokens) for place in places]
    tokens = [sum(row.length for row in of_group) for of_group in rows]
    shares = _balanced(tokens, num_ranks, capacity=len(places) // num_ranks)
    filled = [_filled([row for g in share for row in rows[g]], max_tokens) for share in shares]
    count = max(len(micro_batches) for micro_batches in filled)
    for micro_batches in filled:
        while len(micro_batches) < count:
            _split_largest(micro_batches, groups)
    return filled


def _rows(place: int, group: TrainGroup, max_tokens: int) -> list[PackedRow]:
    """As few rows as the budget allows, of about the same length."""
    lengths = [len(completion.token_ids) for completion in group.rollout.completions]
    rows: list[PackedRow] = []
    for count in range(1, len(lengths) + 1):
        shares = _balanced(lengths, count, capacity=len(lengths))
        rows = [_row(place, group, share) for share in shares]
        if all(row.length <= max_tokens for row in rows):
            break
    return rows


def _row(place: int, group: TrainGroup, completions: Sequence[int]) -> PackedRow:
    answers = sum(len(group.rollout.completions[i].token_ids) for i in completions)
    return PackedRow(
        group=place,
        completions=tuple(completions),
        length=len(group.rollout.prompt_token_ids) + answers,
    )


def _balanced(sizes: Sequence[int], num_shares: int, *, capacity: int) -> list[list[int]]:
    """Shares of about equal size: the largest first, each to the smallest share so far.

    Longest-processing-time scheduling (Graham 1969), with at most `capacity` items in a share.
    """
    shares: list[list[int]] = [[] for _ in range(num_shares)]
    smallest = [(0, share) for share in range(num_shares)]
    for item in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        size, share = heapq.heappop(smallest)
        shares[share].append(item)
        if len(shares[share]) < capacity:
            heapq.heappush(smallest, (size + sizes[item], share))
    return [sorted(share) for share in shares]


def _filled(rows: list[PackedRow], max_tokens: int) -> list[list[PackedRow]]:
    """Each row, the longest first, in the first micro batch that has room for it.

    First-fit-decreasing bin packing (Johnson 1973): at most 11/9 of the fewest possible, and one.
    """
    micro_batches: list[list[PackedRow]] = []
    for row in sorted(rows, key=lambda r: -r.length):
        roomy = (m for m in micro_batches if num_tokens(m) + row.length <= max_tokens)
        if (first := next(roomy, None)) is not None:
            first.append(row)
        else:
            micro_batches.append([row])
    return micro_batches


def _split_largest(micro_batches: list[list[PackedRow]], groups: Sequence[TrainGroup]) -> None:
    """Make one more micro batch of the same completions."""
    divisible = [i for i, m in enumerate(micro_batches) if len(m) > 1 or len(m[0].completions) > 1]
    place = max(divisible, key=lambda i: num_tokens(micro_batches[i]))
    rows = micro_batches[place]
    if len(rows) > 1:
        halves = [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
    else:
        (row,) = rows
        group = groups[row.group]
        lengths = [len(group.rollout.completions[i].token_ids) for i in row.completions]
        shares = _balanced(lengths, 2, capacity=len(lengths))
        halves = [[_row(row.group, group, [row.completions[i] for i in s])] for s in shares]
    micro_batches[place : place + 1] = halves
