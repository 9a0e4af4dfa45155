"""Drawings of graphs over their pictures."""

import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from scene_data.dataset import Sample
from scene_data.reading.images import image_bytes
from scene_data.reading.rows import RowError
from scene_graph.drawing import draw_png, draw_svg
from scene_graph.graph import SceneGraph
from services.errors import InvalidInputError
from services.images import decode_image
from sgg_rl.arguments import AnyPath, checked, one_of

AnyGraph = Annotated[
    Sample | SceneGraph,
    one_of(
        "a graph is a sample or a SceneGraph, such as sgg_rl.read_answer gives", Sample, SceneGraph
    ),
]
Picture = Annotated[
    Sample | AnyPath | bytes | Image.Image | NDArray[Any],
    one_of(
        "a picture is a sample, a file's name, an encoded file, a PIL image or an array of pixels",
        *(Sample, str, Path, bytes, Image.Image, np.ndarray),
    ),
]
"""A sample's; a file's name; an encoded file; one of Pillow's; or pixels, uint8 [height, width] of
grey or [height, width, 3] of RGB"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """A graph over its picture; a notebook shows it."""

    graph: SceneGraph
    image: Image.Image

    def __repr__(self) -> str:
        objects, relationships = len(self.graph.objects), len(self.graph.relationships)
        size = "{}x{}".format(*self.image.size)
        return f"<Drawing of {objects} objects and {relationships} relationships on {size} pixels>"

    def _repr_svg_(self) -> str:
        return self.svg

    @property
    def svg(self) -> str:
        """XML that loads and runs nothing, whatever names the graph has."""
        return draw_svg(self.graph, *self.image.size, self.image)

    @checked
    def save(self, file: AnyPath) -> None:
        """Write an `.svg` or a `.png`.

        Raises:
            InvalidInputError: The file's name ends in neither, or it cannot be written.
        """
        path = Path(file)
        if path.suffix.lower() == ".svg":
            path.write_text(self.svg, encoding="utf-8")
        elif path.suffix.lower() == ".png":
            path.write_bytes(draw_png(self.graph, *self.image.size, self.image))
        else:
            raise InvalidInputError(f"{path}: a drawing is an .svg or a .png: name one of them")


@checked
def draw(graph: AnyGraph, picture: Picture | None = None) -> Drawing:
    """Boxes with names and arrows with predicates, over a picture.

    Example:
        >>> sample = sgg_rl.load_dataset("toy/heldout.parquet")[0]
        >>> sgg_rl.draw(sample)
        <Drawing of 3 objects and 2 relationships on 112x112 pixels>
        >>> sgg_rl.draw(sgg_rl.SceneGraph(objects=(), relationships=()), sample).save("empty.png")

    Args:
        graph: Boxes in pixels of the picture; of a sample its own graph.
        picture: A sample's, a file, an encoded image, one of Pillow's, or an array of uint8
            [height, width, 3]; a sample that is drawn brings its own.

    Raises:
        InvalidInputError: There is no picture, or none that can be read; or a box is not four
            numbers.
        TooLargeError: The picture is over a limit of docs/data.md.
    """
    picture = graph if picture is None and isinstance(graph, Sample) else picture
    if picture is None:
        raise InvalidInputError("give the graph's picture: a sample, a file's name or its bytes")
    drawn = graph.graph if isinstance(graph, Sample) else graph
    return Drawing(graph=drawn, image=decode_image(encoded(picture)))


def on_white(graph: SceneGraph) -> str:
    """SVG of a graph without its picture, as large as its boxes reach."""
    right, bottom = (
        max(filter(math.isfinite, (item.bbox[end] for item in graph.objects)), default=1.0)
        for end in (2, 3)
    )
    return draw_svg(graph, max(round(right), 1), max(round(bottom), 1))


def encoded(picture: Picture) -> bytes:
    """The file of a picture, as it is; of pixels a PNG.

    Raises:
        InvalidInputError: It cannot be read.
    """
    if isinstance(picture, Sample):
        return picture.image_bytes
    if isinstance(picture, Image.Image | np.ndarray):
        return _png(picture)
    try:
        return image_bytes(picture if isinstance(picture, bytes) else Path(picture))
    except RowError as error:
        raise InvalidInputError(f"no picture: {error}") from error


def _png(picture: Image.Image | NDArray[Any]) -> bytes:
    """Turned upright where it is read, as its file would be."""
    if isinstance(picture, np.ndarray) and not (
        picture.dtype == np.uint8
        and picture.size
        and (picture.ndim == 2 or (picture.ndim == 3 and picture.shape[2] in (2, 3, 4)))
    ):
        raise InvalidInputError(
            f"no picture: an array has uint8 [height, width, 3] of RGB, and not {picture.dtype} "
            f"{list(picture.shape)}"
        )
    buffer = io.BytesIO()
    try:
        image = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
        plain = image if image.mode in _PNG_MODES else image.convert("RGB")
        plain.save(buffer, "PNG", exif=image.getexif(), compress_level=1)
    except (OSError, SyntaxError, TypeError, ValueError) as error:
        raise InvalidInputError(f"no picture: {error}") from error
    return buffer.getvalue()


_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
