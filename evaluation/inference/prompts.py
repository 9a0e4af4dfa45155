"""What a rollout server is asked for one image."""

import base64
import hashlib

from scene_data.dataset import Sample
from scene_data.messages import answer_sampling, box_space, image_messages
from services.schemas.rollouts import InlineImage, RolloutRequest
from services.settings import Settings


def rollout_request(
    settings: Settings, sample: Sample, *, constrained: bool = False
) -> RolloutRequest:
    """One answer for an image, sampled as `[evaluation]` says.

    Args:
        settings: The run's.
        sample: The image.
        constrained: Under the JSON Schema of the task, which leaves no room for thinking: it is not
            asked for then.
    """
    data = settings.data
    return RolloutRequest(
        messages=image_messages(data, box_space(settings.model, sample), may_think=not constrained),
        images=[InlineImage(data=base64.b64encode(sample.image_bytes).decode())],
        sampling=answer_sampling(
            settings.evaluation,
            data.task,
            seed=image_seed(settings.run.seed, sample.image_id),
            constrained=constrained,
        ),
    )


def image_seed(seed: int, image_id: str) -> int:
    """In 0 .. 2^53 - 1. The same whichever server is asked, and in whichever order."""
    digest = hashlib.sha256(f"{seed}/{image_id}".encode()).digest()
    return int.from_bytes(digest[:8]) >> 11
