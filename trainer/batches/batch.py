"""From groups to tensors: a group's prompt and image once, its completions behind it.

A row is `[prompt, completion, completion, …]`, and a micro batch is one sequence of rows, without
padding. Each completion sees the prompt and itself, never another completion, and its positions
continue from the prompt's end; so every token's hidden state is what it is in a sequence of its
own, and the prompt and its image are computed once: P + G * C tokens in place of G * (P + C).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from services.errors import InvalidInputError
from services.models.kept_tokens import unpack_kept
from services.schemas.groups import TrainGroup
from trainer.algorithms.logprobs import AllowedTokens, KeptTokens
from trainer.batches.images import ImageFeatures
from trainer.batches.mask_replay import MaskReplay, allowed_tokens
from trainer.batches.micro_batches import PackedRow
from trainer.batches.token_credit import token_advantages

RopeIndex = Callable[..., tuple[Tensor, Tensor]]
"""A model's `get_rope_index`."""


@dataclass(frozen=True, slots=True)
class RowLayout:
    """Where a row's parts lie, and so what may see what.

    Example: `RowLayout(3, (2, 1))` is a prompt at 0 to 2, completions at 3 to 4 and at 5.
    """

    prompt: int
    """Tokens."""
    completions: tuple[int, ...]
    """Tokens of each."""


@dataclass(kw_only=True)
class MicroBatch:
    """N completions of at most L tokens, in R rows that are one sequence of S tokens."""

    input_ids: Tensor
    """[1, S]"""
    position_ids: Tensor
    """[3, 1, S] time, height and width."""
    layout: tuple[RowLayout, ...]
    """[R]; Python's own numbers, for no layer of the model may wait for a GPU to know them."""
    pixel_values: Tensor
    """[P, channels * patch volume] patches, one row's image after another's."""
    image_grid_thw: Tensor
    """[R, 3] patches of each image: time, height, width."""
    source: Tensor
    """[T] for each completion token, which of the S hidden states predicts it."""
    slot: Tensor
    """[T] which of the N * L places below it has."""
    targets: Tensor
    """[N, L] token ids; 0 beyond a completion's end, here and below."""
    loss_mask: Tensor
    """[N, L] 1 on the completion's tokens."""
    rollout_logprobs: Tensor
    """[N, L] of the sampler."""
    token_weights: Tensor
    """[N, L] share of each token in its update's loss (`algorithms.weighting`)."""
    advantages: Tensor
    """[N], or [N, L] where each token has its own."""
    order: list[tuple[int, int]]
    """[N] the place of each one's group in the batch, and its own in the group."""
    allowed: AllowedTokens | KeptTokens | None = None
    """What each of the T tokens could be, where they were sampled under a grammar or `top_k`."""

    def to(self, device: torch.device) -> "MicroBatch":
        """A copy on `device`."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in values.items()}
        if self.allowed is not None:
            moved["allowed"] = type(self.allowed)(*(part.to(device) for part in self.allowed))
        return MicroBatch(**moved)


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedGroup:
    """A group with what its rows share."""

    group: TrainGroup
    weights: Sequence[float]
    """[G] of the tokens of each completion."""
    image: ImageFeatures
    positions: Tensor
    """[3, prompt]"""
    token_advantages: Sequence[Sequence[float]] = ()
    """[G][tokens], where elements have advantages of their own (`token_credit`)."""
    masks: Sequence[Sequence[bytes]] = ()
    """[G][tokens] packed, where the group was sampled under a grammar (`mask_replay`)."""
    kept: Sequence[Tensor] = ()
    """[G] of [tokens, K] ids, where the sampler says what it drew from (`kept_tokens`). These are
    under the grammar, where there is one, so that it needs no replay."""


def prepare_group(
    group: TrainGroup,
    weights: Sequence[float],
    image: ImageFeatures,
    rope_index: RopeIndex,
    *,
    image_token_id: int,
    replay: MaskReplay | None = None,
    tokenizer: Any = None,
) -> PreparedGroup:
    """Check a group against its image and lay out its prompt.

    Args:
        group: As it was sampled.
        weights: What each completion's tokens weigh (`algorithms.weighting`).
        image: The prompt's.
        rope_index: The policy's own.
        image_token_id: The placeholder of one visual token.
        replay: Of the grammar that the run samples under, if it does without `top_k`.
        tokenizer: The policy's; only looked at where elements have advantages.

    Raises:
        InvalidInputError: The prompt's placeholders do not match the image's features, or a
            completion does not fit the grammar.
    """
    prompt = torch.tensor([group.rollout.prompt_token_ids])
    is_image = prompt == image_token_id
    found = int(is_image.sum())
    if found != image.num_tokens:
        raise InvalidInputError(
            f"group {group.rollout.group_id}: the sampler's prompt has {found} image tokens, this "
            f"trainer's processor makes {image.num_tokens}; min_pixels and max_pixels must be the "
            "same in both"
        )
    positions, _ = rope_index(
        input_ids=prompt,
        mm_token_type_ids=is_image.long(),
        image_grid_thw=image.grid.unsqueeze(0),
    )
    return PreparedGroup(
        group=group,
        weights=weights,
        image=image,
        positions=positions[:, 0],
        token_advantages=_token_advantages(group, tokenizer),
        masks=() if replay is None else _masks(group, replay),
        kept=_kept(group),
    )


def _token_advantages(group: TrainGroup, tokenizer: Any) -> list[list[float]]:
    return (
        [
            token_advantages(completion, reward.credit, advantages, tokenizer.backend_tokenizer)
            for completion, reward, advantages in zip(
                group.rollout.completions, group.rewards, group.element_advantages, strict=True
            )
            if reward.credit is not None
        ]
        if group.element_advantages
        else []
    )


def _masks(group: TrainGroup, replay: MaskReplay) -> list[list[bytes]]:
    assert group.prompt is not None, "what was asked has the grammar"
    sampling = group.prompt.sampling
    return [replay.masks(sampling, completion) for completion in group.rollout.completions]


def _kept(group: TrainGroup) -> list[Tensor]:
    return [
        torch.from_numpy(unpack_kept(completion.kept_tokens, len(completion.token_ids)))
        for completion in group.rollout.completions
        if completion.kept_tokens is not None
    ]


def micro_batch(
    rows: Sequence[PackedRow], groups: Mapping[int, PreparedGroup], vocab_size: int = 0
) -> MicroBatch:
    """Lay out the rows of one forward and backward pass.

    Args:
        rows: At least one.
        groups: By place in the batch.
        vocab_size: Of the head; only needed where groups have masks.
    """
    images = [groups[row.group].image for row in rows]
    return MicroBatch(
        pixel_values=torch.cat([image.pixels for image in images]),
        image_grid_thw=torch.stack([image.grid for image in images]),
        order=[(row.group, i) for row in rows for i in row.completions],
        allowed=_allowed(rows, groups, vocab_size),
        **_sequence(rows, groups),
        **_completions(rows, groups),
    )


def _allowed(
    rows: Sequence[PackedRow], groups: Mapping[int, PreparedGroup], vocab_size: int
) -> AllowedTokens | KeptTokens | None:
    """What each token of the rows could be; None where nothing constrained them."""
    members = [(groups[row.group], i) for row in rows for i in row.completions]
    if kept := [prepared.kept[i] for prepared, i in members if prepared.kept]:
        return KeptTokens(torch.cat(kept))
    masks = [mask for prepared, i in members if prepared.masks for mask in prepared.masks[i]]
    return allowed_tokens(masks, vocab_size) if masks else None


def _sequence(rows: Sequence[PackedRow], groups: Mapping[int, PreparedGroup]) -> dict[str, Any]:
    """What the model reads, and where in it each completion token is predicted."""
    token_ids: list[int] = []
    positions: list[Tensor] = []
    layout: list[RowLayout] = []
    source: list[Tensor] = []
    for row in rows:
        prepared = groups[row.group]
        prompt = prepared.group.rollout.prompt_token_ids
        answers = [prepared.group.rollout.completions[i].token_ids for i in row.completions]
        token_ids += prompt
        positions.append(prepared.positions)
        prompt_end, next_position = len(token_ids), int(prepared.positions.max()) + 1
        for answer in answers:
            steps = torch.arange(len(answer))
            before = len(token_ids) + steps - 1
            before[0] = prompt_end - 1
            source.append(before)
            positions.append((next_position + steps).expand(3, -1))
            token_ids += answer
        layout.append(RowLayout(len(prompt), tuple(map(len, answers))))
    return {
        "input_ids": torch.tensor([token_ids]),
        "position_ids": torch.cat(positions, dim=1).unsqueeze(1),
        "layout": tuple(layout),
        "source": torch.cat(source),
    }


def _completions(
    rows: Sequence[PackedRow], groups: Mapping[int, PreparedGroup]
) -> dict[str, Tensor]:
    """What the loss reads, padded to the longest completion."""
    members = [(groups[row.group], i) for row in rows for i in row.completions]
    found = [prepared.group.rollout.completions[i] for prepared, i in members]
    targets = _padded([torch.tensor(c.token_ids) for c in found])
    loss_mask = _padded([torch.ones(len(c.token_ids)) for c in found])
    weights = torch.tensor([prepared.weights[i] for prepared, i in members])
    return {
        "slot": loss_mask.flatten().nonzero().flatten(),
        "targets": targets,
        "loss_mask": loss_mask,
        "rollout_logprobs": _padded([torch.tensor(c.rollout_logprobs) for c in found]),
        "token_weights": loss_mask * weights.unsqueeze(1),
        "advantages": _advantages(members),
    }


def _advantages(members: Sequence[tuple[PreparedGroup, int]]) -> Tensor:
    """[N], or [N, L] where tokens have their own: then those of all groups of a run do."""
    if all(prepared.token_advantages for prepared, _ in members):
        return _padded([torch.tensor(prepared.token_advantages[i]) for prepared, i in members])
    return torch.tensor([prepared.group.advantages[i] for prepared, i in members])


def _padded(rows: Sequence[Tensor]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
