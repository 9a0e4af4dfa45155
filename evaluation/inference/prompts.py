"""What a rollout server is asked for one image."""

import base64
import hashlib
import io

from scene_data.dataset import Sample
from scene_data.messages import answer_sampling, box_space, image_messages
from services.errors import TooLargeError
from services.images import decode_image
from services.schemas.rollouts import MAX_INLINE_BYTES, InlineImage, RolloutRequest
from services.settings import Settings

_QUALITIES = (90, 75, 50)
"""JPEG qualities, tried in turn, for a picture whose file is too large to send"""


def rollout_request(
    settings: Settings, sample: Sample, *, constrained: bool = False
) -> RolloutRequest:
    """The answers for an image, sampled as `[evaluation]` says.

    Args:
        settings: The run's.
        sample: The image.
        constrained: Under the grammar of an answer; thinking, which it would not end, is not asked
            for then.

    Raises:
        TooLargeError: No request takes the picture.
        InvalidInputError: It is damaged.
    """
    data, evaluation = settings.data, settings.evaluation
    sampling = answer_sampling(
        evaluation,
        data,
        seed=image_seed(settings.run.seed, sample.image_id),
        constrained=constrained,
        num_answers=evaluation.num_answers,
    )
    return RolloutRequest(
        messages=image_messages(data, box_space(settings.model, sample), may_think=not constrained),
        images=[InlineImage(data=base64.b64encode(sendable(sample.image_bytes)).decode())],
        sampling=sampling.model_copy(update={"token_ends": evaluation.scores}),
    )


def sendable(data: bytes) -> bytes:
    """A picture's file, or a smaller one with as many pixels where no request takes it.

    Raises:
        TooLargeError: No request takes the picture.
        InvalidInputError: It is damaged.
    """
    if len(data) <= MAX_INLINE_BYTES:
        return data
    image = decode_image(data)
    for quality in _QUALITIES:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        if buffer.tell() <= MAX_INLINE_BYTES:
            return buffer.getvalue()
    raise TooLargeError(
        f"image is too large: over {MAX_INLINE_BYTES:,} bytes, also as a JPEG: save it with fewer "
        "pixels"
    )


def image_seed(seed: int, image_id: str) -> int:
    """In 0 .. 2^53 - 1. The same whichever server is asked, and in whichever order."""
    digest = hashlib.sha256(f"{seed}/{image_id}".encode()).digest()
    return int.from_bytes(digest[:8]) >> 11
