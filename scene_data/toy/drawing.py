"""A picture of a sample: boxes with labels, numbered arrows, and the relationships beside them."""

import colorsys
import io
import math
from typing import Any

from scene_graph.graph import SceneGraph
from services.images import decode_image

LONGER_SIDE = 1000
"""Pixels that the image is enlarged or reduced to"""
PANEL = 420
"""Width of the list of relationships, in pixels"""
LINE = 20
_FONT, _SMALL = 15, 13
_INK, _PAPER, _FAINT = (20, 20, 20), (255, 255, 255), (110, 110, 110)

Point = tuple[float, float]
Colour = tuple[int, int, int]


def draw_graph(image_bytes: bytes, graph: SceneGraph, title: str) -> bytes:
    """A PNG.

    Args:
        image_bytes: The encoded image.
        graph: Boxes in its pixels.
        title: Above the list.

    Raises:
        TooLargeError: As `services.images.decode_image`.
        InvalidInputError: As `services.images.decode_image`.
    """
    from PIL import Image, ImageDraw, ImageFont

    image = decode_image(image_bytes)
    scale = LONGER_SIDE / max(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)))
    sheet = Image.new("RGB", (image.width + PANEL, image.height), _PAPER)
    sheet.paste(image)
    draw = ImageDraw.Draw(sheet)
    font, small = ImageFont.load_default(_FONT), ImageFont.load_default(_SMALL)
    boxes = {item.id: [side * scale for side in item.bbox] for item in graph.objects}
    colours = {name: _colour(i) for i, name in enumerate(boxes)}
    for name, box in boxes.items():
        draw.rectangle(box, outline=colours[name], width=3)
    for number, edge in enumerate(graph.relationships, start=1):
        ends = _centre(boxes[edge.subject]), _centre(boxes[edge.object])
        _arrow(draw, *ends, str(number), colours[edge.subject], small)
    for name, box in boxes.items():
        _label(draw, (box[0], box[1]), name, colours[name], small)
    _list(draw, graph, title, (image.width + 16, image.height), colours, font)
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG")
    return buffer.getvalue()


def _colour(number: int) -> Colour:
    """Neighbours in number are far apart in hue: steps of the golden ratio."""
    red, green, blue = colorsys.hsv_to_rgb(number * 0.618034 % 1, 0.75, 0.72)
    return round(red * 255), round(green * 255), round(blue * 255)


def _centre(box: list[float]) -> Point:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def _label(draw: Any, corner: Point, text: str, colour: Colour, font: Any) -> None:
    """Above a box, or inside it at the image's upper edge."""
    x, y = max(corner[0], 0), max(corner[1] - _SMALL - 6, 0)
    draw.rectangle((x, y, x + draw.textlength(text, font=font) + 6, y + _SMALL + 5), fill=colour)
    draw.text((x + 3, y + 1), text, fill=_PAPER, font=font)


def _arrow(draw: Any, start: Point, end: Point, number: str, colour: Colour, font: Any) -> None:
    draw.line((start, end), fill=_PAPER, width=5)
    draw.line((start, end), fill=colour, width=3)
    angle = math.atan2(end[1] - start[1], end[0] - start[0])
    wings = [
        (end[0] - 14 * math.cos(angle + turn), end[1] - 14 * math.sin(angle + turn))
        for turn in (-0.4, 0.4)
    ]
    draw.polygon([end, *wings], fill=colour, outline=_PAPER)
    # Nearer to the subject than to the object: arrows there and back keep their numbers apart.
    x, y = (0.6 * start[0] + 0.4 * end[0], 0.6 * start[1] + 0.4 * end[1])
    draw.ellipse((x - 11, y - 11, x + 11, y + 11), fill=_PAPER, outline=colour, width=2)
    draw.text((x, y), number, fill=_INK, font=font, anchor="mm")


def _list(
    draw: Any, graph: SceneGraph, title: str, corner: Point, colours: dict[str, Colour], font: Any
) -> None:
    """The relationships by number, as many as fit above a lower left corner."""
    x, height = corner
    draw.text((x, 10), title, fill=_INK, font=font)
    room = int(height - 60) // LINE
    for number, edge in enumerate(graph.relationships[:room], start=1):
        y, at = 16 + LINE * number, x
        parts = (
            (f"{number}  ", _FAINT),
            (edge.subject, colours[edge.subject]),
            (f"  {edge.predicate}  ", _INK),
            (edge.object, colours[edge.object]),
        )
        for text, colour in parts:
            draw.text((at, y), text, fill=colour, font=font)
            at += draw.textlength(text, font=font)
    if (more := len(graph.relationships) - room) > 0:
        draw.text((x, height - 30), f"and {more} more", fill=_FAINT, font=font)
