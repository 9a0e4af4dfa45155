"""How far a metric moves when other images of the same kind are drawn."""

from collections.abc import Iterator, Mapping

import numpy as np

from scene_graph.metrics.ratio import RatioMetric
from scene_graph.similarity import Floats

NUM_RESAMPLES = 1000
LEVEL = 0.95
_AT_ONCE = 50
"""Resamples held in memory together: [50, B] weights."""


def resampled(
    metrics: Mapping[str, RatioMetric], num_images: int, seed: int = 0
) -> dict[str, Floats]:
    """[NUM_RESAMPLES] values of each metric, all on the same draws of images.

    Two runs on the same images with the same seed are resampled alike, which makes the differences
    of their values a paired bootstrap.
    """
    parts: dict[str, list[Floats]] = {name: [] for name in metrics}
    for weights in _draws(num_images, seed):
        for name, metric in metrics.items():
            parts[name].append(metric.weighted(weights))
    return {name: np.concatenate(values) for name, values in parts.items()}


def interval(values: Floats) -> tuple[float, float]:
    """The percentile interval that holds `LEVEL` of resampled values."""
    tail = (1 - LEVEL) / 2
    low, high = np.nanquantile(values, [tail, 1 - tail])
    return float(low), float(high)


def _draws(num_images: int, seed: int) -> Iterator[Floats]:
    rng = np.random.default_rng(seed)
    for _ in range(0, NUM_RESAMPLES, _AT_ONCE):
        draws = rng.integers(0, num_images, size=(_AT_ONCE, num_images))
        yield np.stack([np.bincount(d, minlength=num_images) for d in draws]).astype(np.float64)
