"""Images as the policy's vision tower takes them."""

from dataclasses import dataclass
from io import BytesIO
from typing import Any

from PIL import Image
from torch import Tensor

from scene_data.dataset import Sample
from services.errors import InvalidInputError


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
        sample: Of the dataset.
        processor: The policy's Hugging Face processor.

    Raises:
        InvalidInputError: The file is torn, or no size within the pixel limits fits its shape.
    """
    image_processor = processor.image_processor
    try:
        picture = Image.open(BytesIO(sample.image_bytes)).convert("RGB")
        features = image_processor(images=[picture], return_tensors="pt")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InvalidInputError(f"image {sample.image_id} cannot be prepared: {error}") from error
    grid = features["image_grid_thw"][0]
    return ImageFeatures(
        pixels=features["pixel_values"],
        grid=grid,
        num_tokens=int(grid.prod()) // image_processor.merge_size**2,
    )


def count_image_tokens(sample: Sample, processor: Any) -> int:
    """Visual tokens of an image, by its size alone, once it is known to decode.

    What `image_features` would refuse is refused here, before anything is sampled for it, and at
    the cost of decoding alone.

    Args:
        sample: Of the dataset.
        processor: The policy's Hugging Face processor.

    Raises:
        InvalidInputError: As `image_features`.
    """
    image_processor = processor.image_processor
    try:
        Image.open(BytesIO(sample.image_bytes)).load()
        patches: int = image_processor.get_number_of_image_patches(sample.height, sample.width)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InvalidInputError(f"image {sample.image_id} cannot be prepared: {error}") from error
    return patches // int(image_processor.merge_size) ** 2
