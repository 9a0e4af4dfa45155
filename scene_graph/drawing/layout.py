"""Where boxes, arrows and labels lie on a drawing, whatever draws it.

A drawing has a size of its own, so that its letters are as large on a tiny picture as on one of a
phone: the picture's longer side becomes `LONGER_SIDE`. A strip gets white room beside it.
"""

import colorsys
import math
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import ImageFont

from scene_graph.graph import SceneGraph

LONGER_SIDE = 1000
"""What the longer side of the picture becomes, in units of the drawing"""
SHORTEST_SIDE = 240
"""The drawing is no narrower and no lower"""
FONT_SIZE, LABEL_HEIGHT, LABEL_PAD = 14, 18, 4
_COMPARED = 300
"""Labels before it that one is kept apart from: of thousands, all cover one another"""
MAX_LABEL = 40
"""Characters of a label; a longer text is cut"""
INK, PAPER = (20, 22, 25), (255, 255, 255)
_ALONG = (0.5, 0.4, 0.6, 0.3, 0.7, 0.22, 0.78)
"""Places of a predicate on its arrow, tried in turn"""
_WHITE_BELOW = 0.48
"""Luminance of a colour on which white letters are readable"""

Point = tuple[float, float]
Colour = tuple[int, int, int]
Corners = tuple[float, float, float, float]
"""x1, y1, x2, y2"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """An object's."""

    corners: Corners
    colour: Colour
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrow:
    """From subject to object: a quadratic curve, which keeps arrows there and back apart."""

    start: Point
    control: Point
    end: Point
    colour: Colour

    def at(self, share: float) -> Point:
        """The point after this share of the curve, 0..1."""
        first, second, third = (1 - share) ** 2, 2 * share * (1 - share), share**2
        x, y = (
            first * a + second * b + third * c
            for a, b, c in zip(self.start, self.control, self.end, strict=True)
        )
        return x, y

    @property
    def tip(self) -> tuple[Point, Point, Point]:
        """The triangle at the object's end."""
        (x, y), (cx, cy) = self.end, self.control
        angle = math.atan2(y - cy, x - cx)
        left, right = (
            (x - 13 * math.cos(angle + turn), y - 13 * math.sin(angle + turn))
            for turn in (0.42, -0.42)
        )
        return self.end, left, right


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """Text on a chip of one colour."""

    text: str
    x: float
    """x and y are the left upper corner"""
    y: float
    width: float
    chip: Colour
    border: Colour
    """Its object's, or its arrow's"""
    ink: Colour


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A drawing in its own units, in the order of drawing."""

    size: tuple[int, int]
    picture: tuple[int, int]
    """What the picture becomes, at the left upper corner"""
    boxes: list[Box]
    arrows: list[Arrow]
    labels: list[Label]


def lay_out(graph: SceneGraph, width: int, height: int) -> Layout:
    """The drawing of a graph.

    Args:
        graph: Boxes in pixels of the picture. What cannot be drawn is left out: a box that is not
            finite, an arrow without both its boxes.
        width: The picture's.
        height: The picture's.
    """
    scale = LONGER_SIDE / max(width, height)
    picture = max(round(width * scale), 1), max(round(height * scale), 1)
    size = max(picture[0], SHORTEST_SIDE), max(picture[1], SHORTEST_SIDE)
    boxes = _boxes(graph, scale, picture)
    arrows = _arrows(graph, boxes)
    places = _Places(size, room=len(boxes) + len(arrows))
    names = [
        places.label(box.name, _title_places(box), chip=box.colour, border=box.colour)
        for box in sorted(boxes.values(), key=_area)  # a small one has the fewest places
    ]
    predicates = [
        places.label(text, _arrow_places(arrow), chip=PAPER, border=arrow.colour)
        for arrow, text in arrows
    ]
    return Layout(
        size=size,
        picture=picture,
        boxes=list(boxes.values()),
        arrows=[arrow for arrow, _ in arrows],
        labels=[*predicates, *names],
    )


def text_width(text: str) -> float:
    """Width of one line in `FONT_SIZE`; what the font lacks is as wide as it mostly is."""
    wide = [c for c in text if unicodedata.east_asian_width(c) in "WF"]
    narrow = "".join(c for c in text if unicodedata.east_asian_width(c) not in "WF")
    return font(FONT_SIZE).getlength(narrow) + FONT_SIZE * len(wide)


@lru_cache(maxsize=4)
def font(size: int) -> "ImageFont.FreeTypeFont | ImageFont.ImageFont":
    """Pillow's own."""
    return ImageFont.load_default(size)


def _boxes(graph: SceneGraph, scale: float, picture: tuple[int, int]) -> dict[str, Box]:
    """By id, cut to the picture."""
    names = _names([item.id for item in graph.objects])
    limits = (*picture, *picture)
    boxes = {}
    for number, item in enumerate(graph.objects):
        if all(map(math.isfinite, item.bbox)):
            sides = (min(max(c * scale, 0.0), m) for c, m in zip(item.bbox, limits, strict=True))
            x1, y1, x2, y2 = sides
            corners = min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)
            boxes[item.id] = Box(corners=corners, colour=_colour(number), name=names[number])
    return boxes


def _names(ids: Sequence[str]) -> list[str]:
    """`man` for the one `man.1` of a picture, else `man 1` and `man 2`."""
    parts = [tuple(part.strip() for part in name.partition(".")[::2]) for name in ids]
    total = Counter(category for category, _ in parts)
    return [
        shown_text(f"{category} {number}" if total[category] > 1 else category)
        for category, number in parts
    ]


def shown_text(text: str) -> str:
    """A label's text on one line: nothing in it steers a page or is forbidden in XML."""
    plain = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return plain if len(plain) <= MAX_LABEL else plain[: MAX_LABEL - 1] + "…"


def _colour(number: int) -> Colour:
    """Neighbours in number are far apart in hue: steps of the golden ratio."""
    red, green, blue = colorsys.hsv_to_rgb((0.58 + number * 0.618034) % 1, 0.75, 0.78)
    return round(red * 255), round(green * 255), round(blue * 255)


def _readable_ink(colour: Colour) -> Colour:
    red, green, blue = (c / 255 for c in colour)
    return PAPER if 0.299 * red + 0.587 * green + 0.114 * blue < _WHITE_BELOW else INK


def _area(box: Box) -> float:
    x1, y1, x2, y2 = box.corners
    return (x2 - x1) * (y2 - y1)


def _arrows(graph: SceneGraph, boxes: dict[str, Box]) -> list[tuple[Arrow, str]]:
    """With their predicates. Arrows of the same ordered pair bend apart."""
    seen: Counter[tuple[str, str]] = Counter()
    arrows = []
    for edge in graph.relationships:
        pair = edge.subject, edge.object
        if edge.subject in boxes and edge.object in boxes:
            subject, item = (boxes[name] for name in pair)
            arrow = _curve(_centre(subject), _centre(item), seen[pair], subject.colour)
            arrows.append((arrow, shown_text(edge.predicate)))
            seen[pair] += 1
    return arrows


def _centre(box: Box) -> Point:
    x1, y1, x2, y2 = box.corners
    return (x1 + x2) / 2, (y1 + y2) / 2


def _curve(start: Point, end: Point, number: int, colour: Colour) -> Arrow:
    """It bows to its left, so that two opposite arrows stay apart."""
    (x1, y1), (x2, y2) = start, end
    if math.hypot(x2 - x1, y2 - y1) < 12:
        x1, x2 = x1 - 16, x2 + 16
    length = math.hypot(x2 - x1, y2 - y1)
    bow = min(0.12 * length + 8, 44) + 24 * number + (26 if length < 50 else 0)
    control = (x1 + x2) / 2 + bow * (y2 - y1) / length, (y1 + y2) / 2 - bow * (x2 - x1) / length
    return Arrow(start=(x1, y1), control=control, end=(x2, y2), colour=colour)


def _title_places(box: Box) -> list[tuple[float, float, float]]:
    """Above the box's corners, then inside them, then along its edges.

    Returns:
        x and y of the label's middle, y in units of the drawing, and which share of its width the
        middle lies right of x.
    """
    x1, y1, x2, y2 = box.corners
    rise = LABEL_HEIGHT / 2
    rows = (y1 - rise, y1 + rise, y2 - rise, y2 + rise)
    ends = [(x, y, turn) for y in rows for x, turn in ((x1, 0.5), (x2, -0.5))]
    along = [(x1 + share * (x2 - x1), y, 0.0) for share in (0.5, 0.3, 0.7) for y in rows]
    down = [
        (x, y1 + share * (y2 - y1), turn)
        for share in (0.25, 0.5, 0.75)
        for x, turn in ((x1, 0.5), (x2, -0.5), (x1, -0.5), (x2, 0.5))
    ]
    below = [((x1 + x2) / 2, y2 + rise + rows * LABEL_HEIGHT, 0.0) for rows in (1, 2, 3)]
    return [*ends, *along, *down, *below]


def _arrow_places(arrow: Arrow) -> list[tuple[float, float, float]]:
    """On the arrow, then on all sides of it; as `_title_places`."""
    on = [arrow.at(share) for share in _ALONG]
    beside = [(x, y + rows * LABEL_HEIGHT) for rows in (-1, 1, -2, 2, -3, 3) for x, y in on]
    ends = [(x, y, turn) for turn in (0.5, -0.5) for x, y in on]
    return [*((x, y, 0.0) for x, y in on), *ends, *((x, y, 0.0) for x, y in beside)]


class _Places:
    """Labels that are placed, so that the next one covers none of them where there is room."""

    def __init__(self, size: tuple[int, int], room: int) -> None:
        self._size = size
        self._taken: NDArray[np.float64] = np.empty((4, room))
        self._num = 0

    def label(
        self, text: str, places: list[tuple[float, float, float]], *, chip: Colour, border: Colour
    ) -> Label:
        """At the first free place, else where it covers least."""
        width = text_width(text) + 2 * LABEL_PAD
        middles = np.array(places)
        left = middles[:, 0] + middles[:, 2] * width - width / 2
        corners = np.stack([left, middles[:, 1] - LABEL_HEIGHT / 2], axis=1)
        limit = np.maximum(np.subtract(self._size, (width, LABEL_HEIGHT)), 0)
        corners = np.clip(corners, 0, limit)
        areas = np.concatenate([corners, np.add(corners, (width, LABEL_HEIGHT))], axis=1)
        chosen = int(self._covered(areas).argmin())
        self._taken[:, self._num] = areas[chosen]
        self._num += 1
        x, y = corners[chosen].tolist()
        colours = {"chip": chip, "border": border, "ink": _readable_ink(chip)}
        return Label(text=text, x=x, y=y, width=width, **colours)

    def _covered(self, areas: NDArray[np.float64]) -> NDArray[np.float64]:
        """How much of the last labels each of [P, 4] areas would cover, [P]."""
        x1, y1, x2, y2 = self._taken[:, max(self._num - _COMPARED, 0) : self._num]
        left, top, right, bottom = areas.T[:, :, None]
        width = np.minimum(right, x2) - np.maximum(left, x1)
        height = np.minimum(bottom, y2) - np.maximum(top, y1)
        return np.asarray((width.clip(0) * height.clip(0)).sum(axis=1))
