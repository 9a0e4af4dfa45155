"""Which images the report shows when there are more than it has room for."""

from collections.abc import Collection, Sequence

import numpy as np

from evaluation.result import ImageResult

SEED = 0


def choose_images(
    images: Sequence[ImageResult], num_images: int, failed: Collection[str]
) -> tuple[list[ImageResult], str]:
    """A random sample, with failures as up to a third of it: never the best ones only.

    Args:
        images: All of the evaluation.
        num_images: At most so many are chosen.
        failed: Ids of failures; other ids may be among them.

    Returns:
        The chosen ones in their order, and a sentence that says how they were chosen.
    """
    if len(images) <= num_images:
        return list(images), f"All {len(images):,} images."
    bad = [i for i, image in enumerate(images) if image.image_id in failed]
    good = [i for i, image in enumerate(images) if image.image_id not in failed]
    num_good = min(len(good), num_images - min(len(bad), num_images // 3))
    num_bad = num_images - num_good
    rng = np.random.default_rng(SEED)
    drawn = [
        *rng.choice(good, num_good, replace=False).tolist(),
        *rng.choice(bad, num_bad, replace=False).tolist(),
    ]
    return [images[i] for i in sorted(drawn)], (
        f"{num_images:,} of {len(images):,} images, drawn at random (seed {SEED}): {num_bad:,} of "
        f"the {len(bad):,} without a predicted graph, {num_good:,} of the {len(good):,} others."
    )
