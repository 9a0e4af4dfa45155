"""A drawing as PNG."""

import io

from PIL import Image, ImageDraw

from scene_graph.drawing.layout import (
    FONT_SIZE,
    LABEL_HEIGHT,
    LABEL_PAD,
    PAPER,
    Arrow,
    Label,
    Layout,
    Point,
    font,
    lay_out,
)
from scene_graph.graph import SceneGraph

_FINER = 2
"""Drawn so much larger, then reduced: lines have no steps."""
_CURVE_PARTS = 24


def draw_png(graph: SceneGraph, width: int, height: int, image: Image.Image | None = None) -> bytes:
    """The drawing of `draw_svg` as a PNG file.

    Letters are those of Pillow's own font: of names in scripts that it lacks `draw_svg` is
    readable.

    Args:
        graph: Boxes in pixels of the picture.
        width: The picture's.
        height: The picture's.
        image: The picture, upright RGB of any size of this shape; without one the drawing is on
            white.
    """
    layout = lay_out(graph, width, height)
    sheet = Image.new("RGB", _finer(layout.size), PAPER)
    if image is not None:
        sheet.paste(image.resize(_finer(layout.picture), reducing_gap=2))
    _draw(ImageDraw.Draw(sheet), layout)
    buffer = io.BytesIO()
    sheet.resize(layout.size, Image.Resampling.BOX).save(buffer, "PNG")
    return buffer.getvalue()


def _finer(size: tuple[int, int]) -> tuple[int, int]:
    return size[0] * _FINER, size[1] * _FINER


def _points(*points: Point) -> list[Point]:
    return [(x * _FINER, y * _FINER) for x, y in points]


def _draw(draw: ImageDraw.ImageDraw, layout: Layout) -> None:
    for box in layout.boxes:
        x1, y1, x2, y2 = box.corners
        draw.rectangle(_points((x1, y1), (x2, y2)), outline=box.colour, width=round(2.5 * _FINER))
    for arrow in layout.arrows:
        _arrow(draw, arrow)
    for label in layout.labels:
        _label(draw, label)


def _arrow(draw: ImageDraw.ImageDraw, arrow: Arrow) -> None:
    curve = _points(*(arrow.at(i / _CURVE_PARTS) for i in range(_CURVE_PARTS + 1)))
    draw.line(curve, fill=PAPER, width=4 * _FINER, joint="curve")
    draw.line(curve, fill=arrow.colour, width=2 * _FINER, joint="curve")
    draw.circle(curve[0], 4 * _FINER, fill=arrow.colour, outline=PAPER, width=_FINER)
    draw.polygon(_points(*arrow.tip), fill=arrow.colour, outline=PAPER, width=_FINER)


def _label(draw: ImageDraw.ImageDraw, label: Label) -> None:
    corners = _points((label.x, label.y), (label.x + label.width, label.y + LABEL_HEIGHT))
    draw.rounded_rectangle(corners, 3 * _FINER, label.chip, label.border, _FINER)
    (start,) = _points((label.x + LABEL_PAD, label.y + FONT_SIZE))
    draw.text(start, label.text, fill=label.ink, font=font(FONT_SIZE * _FINER), anchor="ls")
