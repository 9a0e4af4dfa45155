"""From groups to padded tensors."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from io import BytesIO
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from services.errors import InvalidInputError
from services.schemas.rollouts import Completion
from trainer.types import TrainGroup


@dataclass(slots=True, kw_only=True)
class MicroBatch:
    """N completions of at most L tokens, and R sequences of S tokens that hold them."""

    input_ids: Tensor
    """[R, S]"""
    attention_mask: Tensor
    """[R, S]"""
    mm_token_type_ids: Tensor
    """[R, S] 1 on image tokens: the model lays its 2D positions out by this."""
    pixel_values: Tensor
    """[P, channels * patch volume] patches, one image after another."""
    image_grid_thw: Tensor
    """[images, 3] patches of each image: time, height, width."""
    source: Tensor
    """[N, L] for each completion token, which of the R * S hidden states predicts it."""
    targets: Tensor
    """[N, L] token ids; 0 beyond a completion's end, here and below."""
    loss_mask: Tensor
    """[N, L] 1 on the completion's tokens."""
    rollout_logprobs: Tensor
    """[N, L] of the sampler."""
    token_weights: Tensor
    """[N, L] share of each token in the step's loss (`algorithms.weighting`)."""
    advantages: Tensor
    """[N]"""
    order: list[int]
    """[N] which of the rank's completions each one is, groups in order, completions in order."""

    @property
    def num_tokens(self) -> int:
        """Tokens that the model computes on, padding counted."""
        return int(self.input_ids.numel())

    def to(self, device: torch.device) -> "MicroBatch":
        """A copy on `device`."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return MicroBatch(
            **{k: v.to(device) if isinstance(v, Tensor) else v for k, v in values.items()}
        )


@dataclass(slots=True, kw_only=True)
class _Row:
    order: int
    prompt: list[int]
    completion: Completion
    advantage: float
    weight: float
    pixels: Tensor
    grid: Tensor


def micro_batches(
    groups: Sequence[TrainGroup],
    images: Sequence[bytes],
    weights: Sequence[Sequence[float]],
    processor: Any,
    *,
    max_tokens: int,
    image_token_id: int,
) -> list[MicroBatch]:
    """Lay out a rank's groups in micro batches.

    Each image is decoded and preprocessed once; the policy's vision tower still sees it for every
    completion.

    Args:
        groups: This rank's.
        images: Encoded image files, one for each group.
        weights: Of the tokens of each completion of each group (`algorithms.weighting`).
        processor: The policy's Hugging Face processor.
        max_tokens: Of a micro batch, padding counted; a single sequence may be over it.
        image_token_id: Of the placeholder of one visual token.

    Raises:
        InvalidInputError: A prompt's placeholders do not match its image's features.
    """
    rows: list[_Row] = []
    for group, image, group_weights in zip(groups, images, weights, strict=True):
        pixels, grid = _preprocess(image, processor)
        prompt = group.rollout.prompt_token_ids
        _check_placeholders(prompt, grid, processor, image_token_id, group.rollout.group_id)
        for completion, advantage, weight in zip(
            group.rollout.completions, group.advantages, group_weights, strict=True
        ):
            rows.append(
                _Row(
                    order=len(rows),
                    prompt=prompt,
                    completion=completion,
                    advantage=advantage,
                    weight=weight,
                    pixels=pixels,
                    grid=grid,
                )
            )
    pad = processor.tokenizer.pad_token_id
    longest = max(len(r.prompt) + len(r.completion.token_ids) for r in rows)
    size = max(1, max_tokens // longest)
    return [_pad(rows[i : i + size], pad, image_token_id) for i in range(0, len(rows), size)]


def _preprocess(image: bytes, processor: Any) -> tuple[Tensor, Tensor]:
    picture = Image.open(BytesIO(image)).convert("RGB")
    features = processor.image_processor(images=[picture], return_tensors="pt")
    return features["pixel_values"], features["image_grid_thw"][0]


def _check_placeholders(
    prompt: list[int], grid: Tensor, processor: Any, image_token_id: int, group_id: str
) -> None:
    expected = int(grid.prod()) // processor.image_processor.merge_size**2
    found = prompt.count(image_token_id)
    if found != expected:
        raise InvalidInputError(
            f"group {group_id}: the sampler's prompt has {found} image tokens, this trainer's "
            f"processor makes {expected}; min_pixels and max_pixels must be the same in both"
        )


def _pad(rows: Sequence[_Row], pad_token_id: int, image_token_id: int) -> MicroBatch:
    length = max(len(r.prompt) + len(r.completion.token_ids) for r in rows)
    longest = max(len(r.completion.token_ids) for r in rows)
    input_ids = torch.full((len(rows), length), pad_token_id, dtype=torch.long)
    attention_mask = torch.zeros(len(rows), length, dtype=torch.long)
    source = torch.zeros(len(rows), longest, dtype=torch.long)
    targets = torch.zeros(len(rows), longest, dtype=torch.long)
    loss_mask = torch.zeros(len(rows), longest)
    rollout_logprobs = torch.zeros(len(rows), longest)
    for i, row in enumerate(rows):
        start, tokens = len(row.prompt), torch.tensor(row.completion.token_ids)
        end = start + len(tokens)
        input_ids[i, :start] = torch.tensor(row.prompt)
        input_ids[i, start:end] = tokens
        attention_mask[i, :end] = 1
        source[i, : len(tokens)] = torch.arange(start - 1, end - 1) + i * length
        targets[i, : len(tokens)] = tokens
        loss_mask[i, : len(tokens)] = 1
        rollout_logprobs[i, : len(tokens)] = torch.tensor(row.completion.rollout_logprobs)
    return MicroBatch(
        input_ids=input_ids,
        attention_mask=attention_mask,
        mm_token_type_ids=(input_ids == image_token_id).long() * attention_mask,
        pixel_values=torch.cat([r.pixels for r in rows]),
        image_grid_thw=torch.stack([r.grid for r in rows]),
        source=source,
        targets=targets,
        loss_mask=loss_mask,
        rollout_logprobs=rollout_logprobs,
        token_weights=loss_mask * torch.tensor([r.weight for r in rows]).unsqueeze(1),
        advantages=torch.tensor([r.advantage for r in rows]),
        order=[r.order for r in rows],
    )
