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
    """B completions with their prompts, padded on the right to S tokens."""

    input_ids: Tensor
    """[B, S]"""
    attention_mask: Tensor
    """[B, S]"""
    mm_token_type_ids: Tensor
    """[B, S] 1 on image tokens: the model lays its 2D positions out by this."""
    pixel_values: Tensor
    """[P, channels * patch volume] patches, one image after another, one for each completion."""
    image_grid_thw: Tensor
    """[B, 3] patches of each image: time, height, width."""
    loss_mask: Tensor
    """[B, S - 1] 1 where the next token is part of the completion."""
    rollout_logprobs: Tensor
    """[B, S - 1] of the next token; 0 outside the completion."""
    advantages: Tensor
    """[B]"""

    def to(self, device: torch.device) -> "MicroBatch":
        """A copy on `device`."""
        return MicroBatch(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})


@dataclass(slots=True, kw_only=True)
class _Row:
    prompt: list[int]
    completion: Completion
    advantage: float
    pixels: Tensor
    grid: Tensor


def micro_batches(
    groups: Sequence[TrainGroup],
    images: Sequence[bytes],
    processor: Any,
    *,
    size: int,
    image_token_id: int,
) -> list[MicroBatch]:
    """Lay out a rank's groups in micro batches of `size` completions.

    Each image is decoded and preprocessed once; the policy's vision tower still sees it for every
    completion.

    Args:
        groups: This rank's.
        images: Encoded image files, one for each group.
        processor: The policy's Hugging Face processor.
        size: Divides the number of completions.
        image_token_id: Of the placeholder of one visual token.

    Raises:
        InvalidInputError: A prompt's placeholders do not match its image's features.
    """
    rows: list[_Row] = []
    for group, image in zip(groups, images, strict=True):
        pixels, grid = _preprocess(image, processor)
        prompt = group.rollout.prompt_token_ids
        _check_placeholders(prompt, grid, processor, image_token_id, group.rollout.group_id)
        rows += [
            _Row(prompt=prompt, completion=c, advantage=a, pixels=pixels, grid=grid)
            for c, a in zip(group.rollout.completions, group.advantages, strict=True)
        ]
    pad = processor.tokenizer.pad_token_id
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
    input_ids = torch.full((len(rows), length), pad_token_id, dtype=torch.long)
    attention_mask = torch.zeros(len(rows), length, dtype=torch.long)
    loss_mask = torch.zeros(len(rows), length - 1)
    rollout_logprobs = torch.zeros(len(rows), length - 1)
    for i, row in enumerate(rows):
        start, end = len(row.prompt), len(row.prompt) + len(row.completion.token_ids)
        input_ids[i, :end] = torch.tensor(row.prompt + row.completion.token_ids)
        attention_mask[i, :end] = 1
        loss_mask[i, start - 1 : end - 1] = 1
        rollout_logprobs[i, start - 1 : end - 1] = torch.tensor(row.completion.rollout_logprobs)
    return MicroBatch(
        input_ids=input_ids,
        attention_mask=attention_mask,
        mm_token_type_ids=(input_ids == image_token_id).long() * attention_mask,
        pixel_values=torch.cat([r.pixels for r in rows]),
        image_grid_thw=torch.stack([r.grid for r in rows]),
        loss_mask=loss_mask,
        rollout_logprobs=rollout_logprobs,
        advantages=torch.tensor([r.advantage for r in rows]),
    )
