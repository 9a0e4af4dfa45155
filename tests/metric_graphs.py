"""Small graphs to count hits on by hand, and hypothesis strategies of them."""

from collections.abc import Mapping, Sequence
from typing import Any

from hypothesis import strategies as st

from scene_graph.metrics.ratio import RatioMetric
from scene_graph.metrics.table import ImageGraph

Box = tuple[float, float, float, float]
NAMES, PREDICATES = ("cat", "man", "mat"), ("by", "in", "on")


def image(
    objects: Sequence[tuple[str, Box]], *relations: tuple[int, str, int], **other: Any
) -> ImageGraph:
    """`other` are fields of `ImageGraph`, such as scores."""
    return ImageGraph(
        names=[name for name, _ in objects],
        boxes=[c for _, box in objects for c in box],
        subjects=[s for s, _, _ in relations],
        predicates=[p for _, p, _ in relations],
        objects=[o for _, _, o in relations],
        **other,
    )


def values(metrics: Mapping[str, RatioMetric], *names: str) -> tuple[float, ...]:
    return tuple(metrics[name].value for name in names)


BOXES = st.tuples(st.integers(0, 6), st.integers(0, 6), st.integers(1, 6), st.integers(1, 6)).map(
    lambda b: (float(b[0]), float(b[1]), float(b[0] + b[2]), float(b[1] + b[3]))
)
OBJECTS = st.lists(st.tuples(st.sampled_from(NAMES), BOXES), max_size=5)


@st.composite
def graphs(draw: st.DrawFn, *, one_predicate: bool = False) -> ImageGraph:
    """A graph of up to 5 objects and 8 relations; no pair has two if `one_predicate`."""
    objects = draw(OBJECTS)
    index = st.integers(0, len(objects) - 1)
    relation = st.tuples(index, st.sampled_from(PREDICATES), index)
    key = (lambda r: (r[0], r[2])) if one_predicate else None
    relations = draw(st.lists(relation, max_size=8, unique_by=key)) if objects else []
    return image(objects, *relations, size=(12.0, 12.0))


PAIRS = st.lists(st.tuples(graphs(), graphs()), min_size=1, max_size=4)
"""(prediction, reference) of the images of a dataset"""
