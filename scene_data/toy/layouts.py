"""Where the shapes of a toy-scene lie, and how each is related to the next one, on both levels."""

import itertools
import math
from typing import Literal

import numpy as np

CELLS = 8
"""Cells of the grid's sides."""
CONTAINMENT_RATE = 0.35
PREDICATES = ("left of", "right of", "above", "inside")
"""On the first level."""
KEPT = {"in front of": 0.3, "inside": 0.5, "on": 0.25, "attached to": 0.06}
"""The rarer predicates of the second level: shares of such relationships that its scenes keep."""
MAX_HIDDEN = 0.4
"""Share of a shape's box that a smaller one may cover."""

Level = Literal[1, 2]
Cells = tuple[int, int, int, int]
"""x1, y1, x2, y2 in grid cells."""
Rng = np.random.Generator


def place(rng: Rng, level: Level) -> list[Cells]:
    """Boxes of a scene, in no order."""
    return _place_apart(rng) if level == 1 else _place_crowded(rng)


def relation(first: Cells, second: Cells, level: Level) -> tuple[str, bool]:
    """How two boxes are related, the first one earlier in reading order.

    Returns:
        The predicate, and whether the first one is the subject.
    """
    if _contains(first, second):
        return "inside", False
    if _contains(second, first):
        return "inside", True
    if level == 2:
        if overlap(first, second):
            return "in front of", _side(first) < _side(second)
        if touch(first, second):
            return ("on" if first[3] == second[1] else "attached to"), True
    right = second[0] + second[2] - first[0] - first[2]
    down = second[1] + second[3] - first[1] - first[3]
    if abs(down) > abs(right):
        return "above", True  # reading order: the first one is never below
    return ("left of" if right > 0 else "right of"), True


def reading_order(box: Cells) -> tuple[int, int]:
    """By this key boxes are numbered: from top to bottom, from left to right."""
    return box[1], box[0]


def overlap(a: Cells, b: Cells) -> bool:
    """Whether two boxes share a cell."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def touch(a: Cells, b: Cells) -> bool:
    """Whether two boxes share a part of an edge and no cell."""
    beside = (a[2] == b[0] or b[2] == a[0]) and a[1] < b[3] and b[1] < a[3]
    stacked = (a[3] == b[1] or b[3] == a[1]) and a[0] < b[2] and b[0] < a[2]
    return beside or stacked


def _contains(outer: Cells, inner: Cells) -> bool:
    """With a margin on every side."""
    return (
        outer[0] < inner[0] and outer[1] < inner[1] and outer[2] > inner[2] and outer[3] > inner[3]
    )


def _place_apart(rng: Rng) -> list[Cells]:
    """Two or three that do not overlap, but for one that may lie inside another."""
    num_shapes = int(rng.integers(2, 4))
    while True:
        boxes: list[Cells] = []
        if rng.random() < CONTAINMENT_RATE:
            boxes = _nested(rng)
        while len(boxes) < num_shapes:
            boxes.append(_square(rng, int(rng.integers(2, 5))))
        pairs = itertools.combinations(boxes, 2)
        if all(not overlap(*pair) or _contains(*pair) for pair in pairs):
            return boxes


def _place_crowded(rng: Rng) -> list[Cells]:
    """Three to five; a smaller one may hide a part of a larger one, or lie inside it."""
    num_shapes = int(rng.integers(3, 6))
    while True:
        boxes = [_square(rng, int(rng.integers(2, 5))) for _ in range(num_shapes)]
        if rng.random() < CONTAINMENT_RATE:
            boxes[:2] = _nested(rng)
        pairs = [pair for pair in itertools.combinations(boxes, 2) if overlap(*pair)]
        hidden = [max(pair, key=_side) for pair in pairs]
        if len(set(hidden)) < len(hidden) or not all(_seen(*pair) for pair in pairs):
            continue
        in_order = sorted(boxes, key=reading_order)
        predicates = [relation(a, b, 2)[0] for a, b in itertools.pairwise(in_order)]
        if rng.random() < math.prod(KEPT.get(predicate, 1.0) for predicate in predicates):
            return boxes


def _nested(rng: Rng) -> list[Cells]:
    outer = _square(rng, int(rng.integers(4, 6)))
    room = outer[2] - outer[0] - 3
    x, y = (side + int(rng.integers(1, room + 1)) for side in outer[:2])
    return [outer, (x, y, x + 2, y + 2)]


def _seen(a: Cells, b: Cells) -> bool:
    """Whether the larger one of two that overlap shows enough, and it is clear which that is."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    larger = max(_side(a), _side(b))
    return _side(a) != _side(b) and width * height <= MAX_HIDDEN * larger**2


def _side(box: Cells) -> int:
    return box[2] - box[0]


def _square(rng: Rng, side: int) -> Cells:
    x, y = (int(v) for v in rng.integers(0, CELLS - side + 1, size=2))
    return x, y, x + side, y + side
