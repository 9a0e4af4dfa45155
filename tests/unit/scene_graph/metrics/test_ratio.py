import numpy as np
import pytest
from scipy.sparse import csr_array

from scene_graph.metrics.bootstrap import interval, resampled
from scene_graph.metrics.ratio import RatioMetric


def of_two_classes(num_classes: int | None) -> RatioMetric:
    """Image 0 has 1 of 2 of the first class, image 1 has 1 of 1 of the second."""
    return RatioMetric(
        numerator=csr_array(np.array([[1.0, 0.0], [0.0, 1.0]])),
        denominator=csr_array(np.array([[2.0, 0.0], [0.0, 1.0]])),
        num_classes=num_classes,
    )


@pytest.mark.parametrize(("num_classes", "share"), [(None, 1.0), (2, 1.0), (5, 2 / 5)])
def test_a_class_that_a_draw_misses_does_not_count_there(
    num_classes: int | None, share: float
) -> None:
    metric = of_two_classes(num_classes)
    assert metric.value == pytest.approx(0.75 * share)
    draws = metric.weighted(np.array([[2.0, 0.0], [0.0, 2.0], [1.0, 1.0]]))
    assert draws == pytest.approx(np.array([0.5, 1.0, 0.75]) * share)


def test_many_rare_classes_leave_the_interval_around_the_metric() -> None:
    rng = np.random.default_rng(0)
    present = csr_array(np.eye(60))
    found = csr_array(np.diag(rng.integers(0, 2, 60).astype(float)))
    metric = RatioMetric(numerator=found, denominator=present, num_classes=100)
    low, high = interval(resampled({"mean_recall": metric}, 60)["mean_recall"])
    assert low < metric.value < high


@pytest.mark.parametrize(("num_classes", "value"), [(None, np.nan), (3, 0.0)])
def test_without_anything_that_counts(num_classes: int | None, value: float) -> None:
    nothing = csr_array((2, 2))
    metric = RatioMetric(numerator=nothing, denominator=nothing, num_classes=num_classes)
    assert metric.value == pytest.approx(value, nan_ok=True)
