"""Whether the trainer will be able to use an image, known before anything is sampled for it."""

from typing import Any

from services.images import ImageHeader, check_fits, decode_image, image_header


class ImageCheck:
    """Decodes an image and counts the visual tokens that the policy makes of it.

    One rank asks this when it asks for a group: what cannot be used is then left out of the batch
    for all ranks alike.

    Args:
        processor: The policy's Hugging Face processor.
        image_token_id: The placeholder of one visual token.
    """

    def __init__(self, processor: Any, image_token_id: int) -> None:
        self._image_processor = processor.image_processor
        self.image_token_id = image_token_id

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
