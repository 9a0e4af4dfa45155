"""Groups as the collector hands them over, made without a sampler."""

import io
import random
from collections.abc import Sequence

from PIL import Image

from scene_data.dataset import Sample
from scene_data.toy.scenes import toy_scene
from services.schemas.groups import TrainGroup
from services.schemas.rollouts import Completion, RolloutGroup, VersionSpan


def completion(token_ids: Sequence[int], logprobs: float | Sequence[float] = -1.0) -> Completion:
    """A completion of version 0; one log-probability is that of each token."""
    if isinstance(logprobs, float):
        logprobs = [logprobs] * len(token_ids)
    return Completion(
        text="",
        token_ids=list(token_ids),
        rollout_logprobs=list(logprobs),
        finish_reason="stop",
        policy_versions=[VersionSpan(policy_version=0, start=0, end=len(token_ids))],
    )


def train_group(
    prompt: Sequence[int], completions: Sequence[Completion], *, index: int = 0
) -> TrainGroup:
    """A group whose advantages are its completions' lengths."""
    return TrainGroup(
        position=index,
        index=index,
        rollout=RolloutGroup(
            group_id=f"g{index}",
            attempt=0,
            incarnation=1,
            server_id="s",
            prompt_token_ids=list(prompt),
            completions=list(completions),
            sampling_s=0,
        ),
        rewards=[],
        advantages=[float(len(c.token_ids)) for c in completions],
    )


def random_group(
    rng: random.Random, *, prompt: int, lengths: Sequence[int], index: int = 0
) -> TrainGroup:
    """A group of random tokens, none of them special."""

    def tokens(count: int) -> list[int]:
        return [rng.randrange(20, 500) for _ in range(count)]

    found = [completion(tokens(n), -rng.random()) for n in lengths]
    return train_group(tokens(prompt), found, index=index)


def noise_sample(rng: random.Random, width: int = 112, height: int = 112) -> Sample:
    """An image of noise, so that no two patches are alike."""
    file = io.BytesIO()
    Image.frombytes("RGB", (width, height), rng.randbytes(3 * width * height)).save(file, "PNG")
    return Sample(
        image_id=f"noise {width} x {height}",
        image_bytes=file.getvalue(),
        width=width,
        height=height,
        graph=toy_scene(0, 0, heldout=False),
    )
