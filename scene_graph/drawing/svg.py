"""A drawing as SVG, and elements of SVG."""

import base64
import io

from markupsafe import Markup
from PIL import Image

from scene_graph.drawing.layout import (
    FONT_SIZE,
    LABEL_HEIGHT,
    LABEL_PAD,
    LONGER_SIDE,
    Arrow,
    Box,
    Colour,
    Label,
    lay_out,
)
from scene_graph.graph import SceneGraph

_QUALITY = 85
"""The embedded picture's, as JPEG"""


def draw_svg(graph: SceneGraph, width: int, height: int, image: Image.Image | None = None) -> str:
    """A file of its own, which loads nothing and runs nothing, whatever names the graph has.

    Args:
        graph: Boxes in pixels of the picture.
        width: The picture's.
        height: The picture's.
        image: The picture, upright RGB of any size of this shape; without one the drawing is on
            white.

    Returns:
        XML, whose longer side is `LONGER_SIDE` CSS pixels.
    """
    layout = lay_out(graph, width, height)
    size, picture = (
        dict(zip(("width", "height"), s, strict=True)) for s in (layout.size, layout.picture)
    )
    under = [element("rect", **size, fill="#fff")]
    if image is not None:
        uri = data_uri(encode_jpeg(image, LONGER_SIDE, _QUALITY))
        under.append(element("image", **picture, preserveAspectRatio="none", href=uri))
    words = f"{len(graph.objects)} objects, {len(graph.relationships)} relationships"
    return element(
        "svg",
        *under,
        *map(_box, layout.boxes),
        *map(_arrow, layout.arrows),
        *map(_label, layout.labels),
        xmlns="http://www.w3.org/2000/svg",
        **size,
        viewBox=f"0 0 {layout.size[0]} {layout.size[1]}",
        role="img",
        aria_label=words,
        font_family="Arial, Helvetica, sans-serif",
        font_size=FONT_SIZE,
    )


def element(name: str, *children: str, **attributes: str | float) -> Markup:
    """An SVG element; children that are not markup are escaped, as attributes are.

    Args:
        name: Such as `rect`.
        children: Text or elements.
        attributes: With a trailing `_` cut off (`class_`) and others as `-` (`text_anchor`).
    """
    pairs = (
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), _written(value))
        for key, value in attributes.items()
    )
    inner = Markup("").join(children)
    return Markup("<{0}{1}>{2}</{0}>").format(name, Markup("").join(pairs), inner)


def encode_jpeg(image: Image.Image, longest: int, quality: int) -> bytes:
    """A JPEG of an RGB image, reduced to a longest side in pixels where it is larger."""
    share = min(longest / max(image.size), 1)
    size = max(round(image.width * share), 1), max(round(image.height * share), 1)
    buffer = io.BytesIO()
    image.resize(size, reducing_gap=2).save(buffer, "JPEG", quality=quality, optimize=True)
    return buffer.getvalue()


def data_uri(jpeg: bytes) -> str:
    """A JPEG as text that can stand in a page."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()


def _written(value: str | float) -> str:
    return value if isinstance(value, str) else f"{round(value, 1):g}"


def _rgb(colour: Colour) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


def _box(box: Box) -> Markup:
    x1, y1, x2, y2 = box.corners
    place = {"x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1}
    return element(
        "g",
        element("title", box.name),
        element("rect", **place, fill="none", stroke="#fff", stroke_opacity=0.7, stroke_width=4.5),
        element("rect", **place, fill="none", stroke=_rgb(box.colour), stroke_width=2.5),
    )


def path_of(arrow: Arrow) -> str:
    """An arrow's curve as the `d` of a path."""
    start, control, end = (_point(*place) for place in (arrow.start, arrow.control, arrow.end))
    return f"M{start} Q{control} {end}"


def _point(x: float, y: float) -> str:
    return f"{_written(x)} {_written(y)}"


def _arrow(arrow: Arrow) -> Markup:
    path = path_of(arrow)
    tip = " L".join(_point(*corner) for corner in arrow.tip)
    colour = _rgb(arrow.colour)
    x, y = arrow.start
    return element(
        "g",
        element("path", d=path, fill="none", stroke="#fff", stroke_opacity=0.7, stroke_width=4.5),
        element("path", d=path, fill="none", stroke=colour, stroke_width=2),
        element("circle", cx=x, cy=y, r=4, fill=colour, stroke="#fff"),
        element("path", d=f"M{tip} Z", fill=colour, stroke="#fff"),
    )


def _label(label: Label) -> Markup:
    """Its text takes the room that was measured, whatever font the viewer has."""
    place = {"x": label.x, "y": label.y, "width": label.width, "height": LABEL_HEIGHT}
    text = {"x": label.x + LABEL_PAD, "y": label.y + FONT_SIZE}
    length = label.width - 2 * LABEL_PAD
    return element(
        "g",
        element("rect", **place, rx=3, fill=_rgb(label.chip), stroke=_rgb(label.border)),
        element(
            "text",
            label.text,
            **text,
            textLength=length,
            lengthAdjust="spacingAndGlyphs",
            fill=_rgb(label.ink),
        ),
    )
