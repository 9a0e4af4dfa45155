"""Drawings of graphs over their pictures."""

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from scene_data.dataset import Sample
from scene_data.reading.images import image_bytes
from scene_data.reading.rows import RowError
from scene_graph.drawing import draw_png, draw_svg
from scene_graph.graph import SceneGraph
from services.errors import InvalidInputError
from services.images import decode_image

Picture = Sample | str | Path | bytes
"""A sample's, a file's name, or an encoded file"""


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

    def save(self, file: str | Path) -> None:
        """Write an `.svg` or a `.png`.

        Raises:
            InvalidInputError: The file's name ends in neither.
            OSError: It cannot be written.
        """
        path = Path(file).expanduser()
        if path.suffix.lower() == ".svg":
            path.write_text(self.svg, encoding="utf-8")
        elif path.suffix.lower() == ".png":
            path.write_bytes(draw_png(self.graph, *self.image.size, self.image))
        else:
            raise InvalidInputError(f"{path}: a drawing is an .svg or a .png: name one of them")


def draw(graph: Sample | SceneGraph, picture: Picture | None = None) -> Drawing:
    """Boxes with names and arrows with predicates, over a picture.

    Example:
        >>> sample = sgg_rl.load_dataset("toy/heldout.parquet")[0]
        >>> sgg_rl.draw(sample)
        <Drawing of 3 objects and 2 relationships on 112x112 pixels>
        >>> sgg_rl.draw(sgg_rl.SceneGraph(objects=(), relationships=()), sample).save("empty.png")

    Args:
        graph: Boxes in pixels of the picture; of a sample its own graph.
        picture: A sample's, a file, or an encoded image; a sample that is drawn brings its own.

    Raises:
        InvalidInputError: There is no picture, or none that can be read.
        TooLargeError: It is over a limit of docs/data.md.
    """
    picture = graph if picture is None and isinstance(graph, Sample) else picture
    if picture is None:
        raise InvalidInputError("give the graph's picture: a sample, a file's name or its bytes")
    found = graph.graph if isinstance(graph, Sample) else graph
    if not isinstance(found, SceneGraph):
        raise InvalidInputError(
            f"a {type(found).__name__} is no graph: draw a sample or a SceneGraph, such as "
            "sgg_rl.read_answer gives"
        )
    return Drawing(graph=found, image=decode_image(encoded(picture)))


def encoded(picture: Picture) -> bytes:
    """The file of a picture, as it is.

    Raises:
        InvalidInputError: It cannot be read.
    """
    if isinstance(picture, Sample):
        return picture.image_bytes
    if not isinstance(picture, str | Path | bytes):
        raise InvalidInputError(
            f"a picture is a sample, a file's name or its bytes, and no {type(picture).__name__}"
        )
    try:
        return image_bytes(picture if isinstance(picture, bytes) else Path(picture).expanduser())
    except RowError as error:
        raise InvalidInputError(f"no picture: {error}") from error
