"""Two evaluations of the same images: which differences are more than chance?"""

from dataclasses import dataclass

from evaluation.result import EvaluationResult, Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One metric of both, on the images that both have."""

    protocol: Protocol | None
    """None: the metrics of objects and answers, which no protocol changes"""
    metric: str
    first: float | None
    second: float | None
    difference: float | None
    """second - first; None where either is undefined"""
    interval: tuple[float, float] | None
    """95 % of the difference, by a paired bootstrap over images; None where there are no
    resamples (AP)"""
    p_value: float | None
    """Two-sided: twice the share of resamples on the other side of 0, at most 1"""


@dataclass(frozen=True, slots=True, kw_only=True)
class PredicateChange:
    """What one predicate gained or lost, in `strict` recall at 100."""

    predicate: str
    num_reference: int
    first: float
    second: float

    @property
    def difference(self) -> float:
        """second - first"""
        return self.second - self.first


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two evaluations beside each other. `comparison.json` has all but `first` and `second`."""

    first: EvaluationResult
    second: EvaluationResult
    """The one that is asked about: differences are second - first"""
    num_images: int
    """That both have; the differences are of these"""
    num_left_out: tuple[int, int]
    """Images that only the first has, and only the second"""
    differences: list[Difference]
    predicates: list[PredicateChange]
    """By difference, greatest loss first"""
