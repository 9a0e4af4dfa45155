"""All protocols agree with plain loops on thousands of graphs where names and boxes coincide."""

import random
from collections.abc import Iterator, Mapping

import numpy as np
import pytest

from scene_graph.metrics.r1_sgg import r1_sgg
from scene_graph.metrics.ratio import RatioMetric
from scene_graph.metrics.sgb import sgb
from scene_graph.metrics.strict import strict
from scene_graph.metrics.table import ImageGraph, tabulate
from tests import metrics_oracle as oracle

NAMES = ("cat", "mat")
PREDICATES = ("by", "in", "on")
SEEN = {("cat", "on", "mat"), ("cat", "in", "cat"), ("mat", "by", "cat"), ("mat", "on", "mat")}
ALL = {(s, p, o) for s in NAMES for p in PREDICATES for o in NAMES}
BOXES: tuple[tuple[float, ...], ...] = (
    (0, 0, 10, 10),
    (0, 0, 10, 5),  # half of the first: IoU 0.5
    (0, 0, 10, 4.9),
    (0, 5, 10, 10),
    (1, 1, 11, 11),
    (20, 0, 29, 9),
    (20, 0, 24, 9),  # IoU 4/9, with the pixel more 5/10
    (20, 0, 20, 9),  # no width
    (29, 9, 20, 0),  # corners swapped
)
Dataset = tuple[list[ImageGraph], list[ImageGraph]]


def graph(rng: random.Random, max_objects: int, max_relations: int) -> ImageGraph:
    n = rng.randint(0, max_objects)
    e = rng.randint(0, max_relations) if n else 0
    scored = rng.random() < 0.4
    return ImageGraph(
        names=rng.choices(NAMES, k=n),
        boxes=[c for box in rng.choices(BOXES, k=n) for c in box],
        scores=rng.choices((1.0, 0.5, 0.25), k=n) if scored else [],
        subjects=[rng.randrange(n) for _ in range(e)],
        predicates=rng.choices(PREDICATES, k=e),
        objects=[rng.randrange(n) for _ in range(e)],
        relation_scores=rng.choices((1.0, 0.5, 0.3), k=e) if scored else [],
        size=(30.0, 20.0),
    )


def datasets(num: int, max_objects: int, max_relations: int) -> Iterator[Dataset]:
    for seed in range(num):
        rng = random.Random(seed)
        num_images = rng.randint(1, 5)
        yield (
            [graph(rng, max_objects, max_relations) for _ in range(num_images)],
            [graph(rng, 4, 6) for _ in range(num_images)],
        )


SMALL, LARGE = (350, 4, 8), (25, 14, 150)
"""Thousands of small graphs; some in which every K leaves relations out."""


def assert_same(metrics: Mapping[str, RatioMetric], expected: Mapping[str, float]) -> None:
    values = {name: metrics[name].value for name in expected}
    assert values == pytest.approx(dict(expected), abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("size", [SMALL, LARGE], ids=["small", "large"])
def test_strict(size: tuple[int, int, int]) -> None:
    for predictions, references in datasets(*size):
        metrics = strict(*tabulate(predictions, references), seen=SEEN).metrics
        expected = oracle.strict(predictions, references, SEEN)
        assert_same(metrics, expected)
        assert metrics.keys() - expected.keys() == {"mean_iou"}


@pytest.mark.parametrize("size", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("num_columns", [4, 150])
def test_sgb(size: tuple[int, int, int], num_columns: int) -> None:
    vocabulary = ["on", "at", "by", "in"]
    for predictions, references in datasets(*size):
        tables = tabulate(predictions, references)
        metrics = sgb(*tables, predicates=vocabulary, num_columns=num_columns, seen=SEEN)
        expected = oracle.sgb(predictions, references, vocabulary, num_columns, ALL - SEEN)
        assert_same(metrics, expected)
        assert metrics.keys() == expected.keys()


def test_r1_sgg() -> None:
    for predictions, references in datasets(*SMALL):
        metrics = r1_sgg(*tabulate(predictions, references))
        expected = oracle.r1_sgg(predictions, references)
        assert_same(metrics, expected)
        assert metrics.keys() == expected.keys()


def test_parts_make_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is held in memory together changes nothing."""
    chosen = [next(datasets(1, *LARGE[1:])), *datasets(40, *SMALL[1:])]

    def measured() -> list[dict[str, float]]:
        tables = [tabulate(*dataset) for dataset in chosen]
        metrics = [strict(*both).metrics | r1_sgg(*both) for both in tables]
        metrics += [sgb(*both) for both in tables]
        return [{name: m.value for name, m in of.items()} for of in metrics]

    whole = measured()
    monkeypatch.setattr("scene_graph.metrics.hits._PAIRS_AT_ONCE", 3)
    monkeypatch.setattr("scene_graph.metrics.sgb._CELLS_AT_ONCE", 50)
    for parts, expected in zip(measured(), whole, strict=True):
        assert parts == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_the_cases_are_hard_ones() -> None:
    """Each rule that tells the protocols and cuts apart decides somewhere."""
    values: dict[str, list[float]] = {}
    for predictions, references in [*datasets(30, *SMALL[1:]), *datasets(*LARGE)]:
        tables = tabulate(predictions, references)
        measured = strict(*tables).metrics | {
            f"{name} of {protocol}": metric
            for protocol, metrics in (("sgb", sgb(*tables)), ("r1-sgg", r1_sgg(*tables)))
            for name, metric in metrics.items()
        }
        for name, metric in measured.items():
            values.setdefault(name, []).append(metric.value)
    distinct = {name: tuple(np.nan_to_num(v).tolist()) for name, v in values.items()}
    for one, other in (
        ("recall@20", "recall@50"),
        ("ng_recall@50", "ng_recall@100"),
        ("ng_recall@100", "triplet_recall"),
        ("recall@100", "ng_recall@100"),
        ("ng_recall@100", "ng_recall of r1-sgg"),
        ("recall@100 of sgb", "ng_recall of r1-sgg"),
        ("recall@50 of sgb", "recall@100 of sgb"),
        ("ng_recall@20 of sgb", "ng_recall@50 of sgb"),
        ("ng_recall@50 of sgb", "ng_recall@100 of sgb"),
        ("ng_recall@100 of sgb", "recall@100 of sgb"),
        ("ng_mean_recall of r1-sgg", "ng_mean_recall_pooled of r1-sgg"),
    ):
        assert distinct[one] != distinct[other], (one, other)
