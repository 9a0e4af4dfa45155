"""A metric that remembers what each image gave to it, so that images can be drawn again.

Every recall here is a mean over classes of a ratio of sums over images:

    value(w) = mean over classes c of  sum_i w_i N[i, c] / sum_i w_i D[i, c]

with w_i = 1 for the metric itself and a multinomial draw for the bootstrap (Efron 1979). A mean
over images is one class with D = 1 where the image counts; a recall pooled for each predicate has
hits in N and references in D.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from scene_graph.similarity import Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class RatioMetric:
    """One metric of B images over C classes."""

    numerator: csr_array
    """[B, C]"""
    denominator: csr_array
    """[B, C] of 0 and more"""
    num_classes: int | None = None
    """Divide by this many, a class that no image has counting 0; by those that have one if None."""

    @classmethod
    def of_images(cls, above: Floats, below: Floats) -> "RatioMetric":
        """The sum of one value [B] over all images by that of another [B]."""
        return cls(
            numerator=csr_array(above.reshape(-1, 1)), denominator=csr_array(below.reshape(-1, 1))
        )

    @classmethod
    def mean_of_images(cls, values: Floats, counts: Floats) -> "RatioMetric":
        """The mean of a value [B] over the images that count [B] (0 or 1, or a weight)."""
        return cls.of_images(values * counts, np.asarray(counts, dtype=np.float64))

    @property
    def value(self) -> float:
        """The metric; nan where it has no class to average over."""
        return float(self.weighted(np.ones((1, self.numerator.shape[0])))[0])

    def by_class(self) -> tuple[Floats, Floats]:
        """[C] sums of numerator and of denominator."""
        ones = np.ones(self.numerator.shape[0])
        return self.numerator.T @ ones, self.denominator.T @ ones

    def weighted(self, weights: Floats) -> Floats:
        """[R] the metric with images weighted.

        A class that is missing from a draw alone does not count there: as 0 it would pull every
        draw below the metric itself.

        Args:
            weights: [R, B] of 0 and more.
        """
        above = (self.numerator.T @ weights.T).T
        below = (self.denominator.T @ weights.T).T
        counted = below > 0
        ratios = np.divide(above, below, out=np.zeros_like(above), where=counted)
        with np.errstate(invalid="ignore"):  # 0 / 0 where nothing counts
            result: Floats = ratios.sum(axis=1) / counted.sum(axis=1)
            if self.num_classes is not None:
                present = np.count_nonzero(self.by_class()[1])
                result = np.nan_to_num(result) * np.divide(present, self.num_classes)
        return result


def number(value: float) -> float | None:
    """None for nan, which JSON does not have."""
    return None if math.isnan(value) else value
