"""Whether the trainer will be able to use an image, known before anything is sampled for it."""

from typing import Any

from services.errors import InvalidInputError
from services.images import decode_image


class ImageCheck:
    """Decodes an image and counts the visual tokens that the policy makes of it.

    One rank asks this when it asks for a group: what cannot be used is then left out of the batch
    for all ranks alike.

    Args:
        processor: The policy's Hugging Face processor.
        image_token_id: Of the placeholder of one visual token.
    """

    def __init__(self, processor: Any, image_token_id: int) -> None:
        self._image_processor = processor.image_processor
        self.image_token_id = image_token_id

    def num_tokens(self, data: bytes) -> int:
        """Visual tokens of an encoded image.

        Raises:
            InvalidInputError: Its bytes do not decode, or its shape is one that the processor does
                not take (sides of more than 200 to 1).
            TooLargeError: Over the limits of `services.images`.
        """
        width, height = decode_image(data).size
        try:
            patches = self._image_processor.get_number_of_image_patches(height, width)
        except ValueError as error:
            raise InvalidInputError(f"an image of {width}x{height} pixels: {error}") from error
        return int(patches) // int(self._image_processor.merge_size) ** 2
