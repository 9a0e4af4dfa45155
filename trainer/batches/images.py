"""Images as the policy's vision tower takes them, and whether it can."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from scene_data.dataset import Sample
from services.errors import InvalidInputError, TooLargeError
from services.images import ImageHeader, check_fits, decode_image, image_header


class ImageCheck:
    """Decodes an image and counts the visual tokens that the policy makes of it.

    One rank asks this when it asks for a group: what cannot be used is then left out of the batch
    for all ranks alike.

    Args:
        processor: The policy's Hugging Face processor.
    """

    def __init__(self, processor: Any) -> None:
        self._image_processor = processor.image_processor
        self.image_token_id = int(processor.image_token_id)

    def header(self, data: bytes) -> ImageHeader:
        """The size of an encoded image that keeps all limits, the policy's too. Nothing is decoded.

        Raises:
            InvalidInputError: As `services.images.image_header` and `check_fits`.
            TooLargeError: As `services.images.image_header`.
        """
        found, processor = image_header(data), self._image_processor
        check_fits(
            found.width,
            found.height,
            factor=processor.patch_size * processor.merge_size,
            min_pixels=processor.size["shortest_edge"],
            max_pixels=processor.size["longest_edge"],
        )
        return found

    def num_tokens(self, data: bytes) -> int:
        """Visual tokens of an encoded image.

        Raises:
            InvalidInputError: As `header`, or the image is damaged.
            TooLargeError: As `header`.
        """
        width, height = self.header(data).size
        decode_image(data)
        patches = self._image_processor.get_number_of_image_patches(height, width)
        return int(patches) // int(self._image_processor.merge_size) ** 2


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
