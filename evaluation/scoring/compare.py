"""Two evaluations of the same images: which differences are more than chance?

Both are resampled on the same draws of images (a paired bootstrap), so what makes an image hard for
both does not count as a difference.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.sparse import csr_array

from evaluation.reading.references import image_order
from evaluation.result import AP_METRICS, PROTOCOLS, DrawnGraph, EvaluationResult, Protocol
from evaluation.scoring.predicates import mean_recall
from scene_graph.metrics.bootstrap import interval, resampled
from scene_graph.metrics.ratio import RatioMetric, number
from scene_graph.metrics.recall import by_name
from scene_graph.similarity import Floats, Indices
from services.errors import InvalidInputError

_NO_RESAMPLES: Floats = np.empty(0)


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
    """Two-sided: twice the smaller share of resamples on one side of 0, at most 1"""


@dataclass(frozen=True, slots=True, kw_only=True)
class PredicateChange:
    """What one predicate gained or lost, in `strict` recall at 100 (`cls`: recall)."""

    predicate: str
    num_reference: int
    first: float
    second: float

    @property
    def difference(self) -> float:
        """What the second has more."""
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

    def __repr__(self) -> str:
        sure = [
            d for d in self.differences if d.interval and not d.interval[0] <= 0 <= d.interval[1]
        ]
        return (
            f"<Comparison of {self.second.name!r} with {self.first.name!r}: {self.num_images} "
            f"images, {len(sure)} of {len(self.differences)} differences beyond chance>"
        )


def compare(first: EvaluationResult, second: EvaluationResult) -> Comparison:
    """On the images that both have.

    Args:
        first: The one to compare with.
        second: The one that is asked about.

    Raises:
        InvalidInputError: They have no image in common, or are of different tasks.
    """
    if first.task != second.task:
        raise InvalidInputError(
            f"{first.name} is an evaluation of the task {first.task}, {second.name} of "
            f"{second.task}: evaluate both with the same --task"
        )
    left, right, both = _in_both(first, second)
    of_first, of_second = (_of_images(r, i) for r, i in ((first, left), (second, right)))
    differences = [
        difference
        for group in (*PROTOCOLS, "objects", "answers")
        for difference in _differences(group, of_first.get(group, {}), of_second.get(group, {}))
    ]
    if first.objects and len(both) == first.num_images == second.num_images:
        differences += _average_precision(first, second)
    return Comparison(
        first=first,
        second=second,
        num_images=len(both),
        num_left_out=(first.num_images - len(both), second.num_images - len(both)),
        differences=differences,
        predicates=_predicate_changes(
            (mean_recall(of_first["strict"]), first.class_names),
            (mean_recall(of_second["strict"]), second.class_names),
        )
        if "strict" in of_first
        else [],
    )


def _in_both(
    first: EvaluationResult, second: EvaluationResult
) -> tuple[Indices, Indices, list[str]]:
    """Places of the common images in both, and their ids, in the same order."""
    places = [{image.image_id: i for i, image in enumerate(r.images)} for r in (first, second)]
    common = sorted(places[0].keys() & places[1].keys(), key=image_order)
    if not common:
        raise InvalidInputError(
            f"{first.name} (on {first.split}) and {second.name} (on {second.split}) "
            "have no image in common: evaluate both against the same reference"
        )
    left, right = (np.array([place[name] for name in common]) for place in places)
    for i, j in zip(left.tolist(), right.tolist(), strict=True):
        if _content(first.images[i].reference) != _content(second.images[j].reference):
            raise InvalidInputError(
                f"image {first.images[i].image_id} has another reference in {first.name} than in "
                f"{second.name}: evaluate both against the same reference"
            )
    return left, right, common


def _content(graph: DrawnGraph) -> tuple[list[Any], list[Any]]:
    """What is drawn, without what became of it."""
    objects = [(o.name, o.bbox) for o in graph.objects]
    return objects, [(r.subject, r.predicate, r.object) for r in graph.relations]


def _of_images(result: EvaluationResult, images: Indices) -> dict[str, dict[str, RatioMetric]]:
    """The metrics of some images alone, in their order."""
    return {
        group: {
            name: replace(
                metric,
                numerator=csr_array(metric.numerator[images]),
                denominator=csr_array(metric.denominator[images]),
            )
            for name, metric in metrics.items()
        }
        for group, metrics in result.metrics.items()
    }


def _differences(
    group: str, first: dict[str, RatioMetric], second: dict[str, RatioMetric]
) -> list[Difference]:
    """Differences of the metrics that both have."""
    shared = first.keys() & second.keys()
    names = [n for n in first if n in shared and not n.startswith("reference_")]
    if not names:
        return []
    num_images = first[names[0]].numerator.shape[0]
    of_first = resampled({name: first[name] for name in names}, num_images)
    of_second = resampled({name: second[name] for name in names}, num_images)
    protocol: Protocol | None = next((p for p in PROTOCOLS if p == group), None)
    return [
        _difference(
            f"object_{name}" if group == "objects" and name != "mean_iou" else name,
            number(first[name].value),
            number(second[name].value),
            protocol,
            of_second[name] - of_first[name],
        )
        for name in names
    ]


def _difference(
    metric: str,
    first: float | None,
    second: float | None,
    protocol: Protocol | None = None,
    resamples: Floats = _NO_RESAMPLES,
) -> Difference:
    difference = None if first is None or second is None else second - first
    defined = resamples[np.isfinite(resamples)]
    is_resampled = difference is not None and defined.size > 0
    return Difference(
        protocol=protocol,
        metric=metric,
        first=first,
        second=second,
        difference=difference,
        interval=interval(defined) if is_resampled else None,
        p_value=_p_value(defined) if is_resampled else None,
    )


def _average_precision(first: EvaluationResult, second: EvaluationResult) -> list[Difference]:
    """It is no mean over images, so it is not resampled."""
    # An evaluation of an earlier version has fewer.
    names = [name for name in AP_METRICS if name in first.objects and name in second.objects]
    return [_difference(name, first.objects[name], second.objects[name]) for name in names]


def _p_value(resamples: Floats) -> float:
    """Never 0: a sample of resamples can only say that p is small (Davison and Hinkley 1997)."""
    above, below = (resamples >= 0).sum(), (resamples <= 0).sum()
    return min(1.0, 2 * (float(min(above, below)) + 1) / (resamples.size + 1))


def _predicate_changes(
    first: tuple[RatioMetric, Sequence[str]], second: tuple[RatioMetric, Sequence[str]]
) -> list[PredicateChange]:
    before, after = by_name(*first), by_name(*second)
    num_reference = dict(zip(second[1], second[0].by_class()[1].tolist(), strict=True))
    changes = [
        PredicateChange(
            predicate=name,
            num_reference=int(num_reference[name]),
            first=before[name],
            second=after[name],
        )
        for name in sorted(before.keys() & after.keys())
    ]
    return sorted(changes, key=lambda change: change.difference)
