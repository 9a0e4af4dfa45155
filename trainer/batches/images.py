"""Images as the policy's vision tower takes them."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from scene_data.dataset import Sample
from services.errors import InvalidInputError, TooLargeError
from services.images import decode_image


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFeatures:
    """A preprocessed image."""

    pixels: Tensor
    """[patches, channels * patch volume]"""
    grid: Tensor
    """[3] patches: time, height, width."""
    num_tokens: int
    """Visual tokens that the tower makes of it, each with a placeholder in the prompt."""


def image_features(sample: Sample, processor: Any) -> ImageFeatures:
    """Decode an image and cut it into patches.

    Args:
        sample: A row of the dataset.
        processor: The policy's Hugging Face processor.

    Raises:
        InvalidInputError: As `services.images.decode_image`, or the processor refuses it.
    """
    image_processor = processor.image_processor
    try:
        picture = decode_image(sample.image_bytes)
        features = image_processor(images=[picture], return_tensors="pt")
    except (InvalidInputError, TooLargeError, ValueError) as error:
        raise InvalidInputError(f"image {sample.image_id} cannot be prepared: {error}") from error
    grid = features["image_grid_thw"][0]
    return ImageFeatures(
        pixels=features["pixel_values"],
        grid=grid,
        num_tokens=int(grid.prod()) // image_processor.merge_size**2,
    )
