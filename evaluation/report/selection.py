"""Which images the report shows when there are more than it has room for."""

from collections.abc import Callable, Sequence

import numpy as np

from evaluation.result import ImageResult

SEED = 0


def choose_images(
    images: Sequence[ImageResult], num_images: int, failed: Callable[[ImageResult], bool]
) -> tuple[list[ImageResult], str]:
    """A random sample, with failures as up to a third of it: never the best ones only.

    Args:
        images: All of the evaluation.
        num_images: At most so many are chosen.
        failed: Whether an image is a failure.

    Returns:
        The chosen ones in their order, and a sentence that says how they were chosen.
    """
    if len(images) <= num_images:
        return list(images), f"All {len(images):,} images of the evaluation."
    bad = [i for i, image in enumerate(images) if failed(image)]
    good = sorted(set(range(len(images))) - set(bad))
    rng = np.random.default_rng(SEED)
    num_good = min(len(good), num_images - min(len(bad), num_images // 3))
    num_bad = min(len(bad), num_images - num_good)
    drawn = [
        *rng.choice(good, num_good, replace=False),
        *rng.choice(bad, num_bad, replace=False),
    ]
    how = (
        f"{num_good + num_bad:,} of {len(images):,} images, drawn at random (seed {SEED}): "
        f"{num_bad:,} of the {len(bad):,} without a graph and {num_good:,} of the "
        f"{len(good):,} others. Failures are shown more often than they occur."
    )
    return [images[i] for i in sorted(int(i) for i in drawn)], how
