"""A graph as small as a stamp: boxes and arrows without names, whose colours are a page's.

Each part has its verdict as its class, such as `object hit` or `relation miss`, as in the drawings
of the report's browser, so that one style sheet colours both.
"""

from collections.abc import Sequence

from markupsafe import Markup

from scene_graph.drawing.layout import Arrow, Corners, centre_of, curve_between
from scene_graph.drawing.svg import element, path_of

SIDE = 200
"""What the longer side of the picture becomes, in units of the sketch"""
MAX_PARTS = 60
"""Boxes, and arrows, that are drawn: more cannot be told apart"""


def draw_sketch(
    boxes: Sequence[tuple[Corners | None, str]],
    arrows: Sequence[tuple[int, int, str]],
    size: tuple[int, int],
    *,
    title: str,
    picture: str | None = None,
) -> Markup:
    """An SVG element for a page whose style sheet has the classes.

    Args:
        boxes: In pixels of the picture, each with its class; None where there is no box.
        arrows: From and to which box, by index, each with its class; one without both its boxes is
            left out.
        size: The picture's width and height in pixels.
        title: What it shows, for those who do not see it.
        picture: The picture's address, of this page's own origin.
    """
    scale = SIDE / max(*size, 1)
    width, height = (max(side * scale, 1.0) for side in size)
    places = [None if box is None else _scaled(box, scale) for box, _ in boxes[:MAX_PARTS]]
    parts = [] if picture is None else [_picture(picture, width, height)]
    parts += [
        element("rect", **_rect(place), class_=f"line {kind}")
        for place, (_, kind) in zip(places, boxes[:MAX_PARTS], strict=True)
        if place is not None
    ]
    parts += [_arrow(arrow, kind) for arrow, kind in _curves(places, arrows[:MAX_PARTS])]
    return element(
        "svg",
        *parts,
        viewBox=f"0 0 {width:g} {height:g}",
        class_="drawing sketch",
        role="img",
        aria_label=title,
    )


def _scaled(box: Corners, scale: float) -> Corners:
    x1, y1, x2, y2 = (side * scale for side in box)
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


def _rect(box: Corners) -> dict[str, float]:
    x1, y1, x2, y2 = box
    return {"x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1}


def _picture(address: str, width: float, height: float) -> Markup:
    return element("image", href=address, width=width, height=height, preserveAspectRatio="none")


def _curves(
    places: Sequence[Corners | None], arrows: Sequence[tuple[int, int, str]]
) -> list[tuple[Arrow, str]]:
    found = []
    for start, end, kind in arrows:
        if max(start, end) < len(places):
            a, b = places[start], places[end]
            if a is not None and b is not None:
                found.append((curve_between(centre_of(a), centre_of(b)), kind))
    return found


def _arrow(arrow: Arrow, kind: str) -> Markup:
    x, y = arrow.end
    return element("path", d=path_of(arrow), class_=f"line {kind}") + element(
        "circle", cx=x, cy=y, r=4, class_=f"tip {kind}"
    )
