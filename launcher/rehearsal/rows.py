"""Rows for a rehearsal on a machine without the recipe's data: made up, of the size of VG150's."""

import io
from pathlib import Path

import numpy as np

from scene_data.vocabulary import load_vocabulary
from scene_data.writing import graph_row, parquet_writer
from scene_graph.graph import Relationship, SceneGraph, SceneObject
from services.models.families import model_family
from services.settings import Settings

NUM_OBJECTS, NUM_RELATIONSHIPS = 12, 6
"""VG150's means are 11.5 and 6.2 (arXiv 1701.02426, section 4)."""
_WIDEST = 2.0
"""Width over height, at most."""


def write_rows(settings: Settings, file: Path, num_rows: int) -> None:
    """Write pictures of rectangles and their graphs.

    Args:
        settings: The recipe's: the pictures have the most tokens that `model.max_pixels` allows,
            the names are those of `data.vocabulary`, or VG150's.
        file: A parquet file; its folder is made.
        num_rows: How many.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    size = largest_picture(
        settings.model.max_pixels, model_family(settings.model.path).patch_factor
    )
    rng = np.random.default_rng(settings.run.seed)
    vocabulary = load_vocabulary(settings.data.vocabulary or "vg150")
    with parquet_writer(file) as write:
        for number in range(num_rows):
            graph = _graph(rng, size, vocabulary.objects, vocabulary.predicates)
            name = f"{file.stem}-{number}"
            write(graph_row(name, _picture(graph, size, rng), f"{name}.jpg", size, graph))


def largest_picture(max_pixels: int, factor: int) -> tuple[int, int]:
    """Width and height, multiples of `factor`, of the most pixels that are allowed.

    Example: `largest_picture(512 * 28 * 28, 28) == (32 * 28, 16 * 28)`
    """
    most = max_pixels // factor**2
    sizes = [
        (most // rows, rows)
        for rows in range(1, most + 1)
        if rows <= most // rows <= _WIDEST * rows
    ]
    columns, rows = max(sizes, key=lambda size: size[0] * size[1])
    return columns * factor, rows * factor


def _graph(
    rng: np.random.Generator,
    size: tuple[int, int],
    names: tuple[str, ...],
    predicates: tuple[str, ...],
) -> SceneGraph:
    corners = np.sort(rng.uniform(0, 1, (NUM_OBJECTS, 2, 2)), axis=1) * np.array(size)
    objects = tuple(
        SceneObject(
            id=f"{rng.choice(names)}.{number}",
            bbox=(int(low[0]), int(low[1]), int(high[0]) + 1, int(high[1]) + 1),
        )
        for number, (low, high) in enumerate(corners, start=1)
    )
    relationships = []
    for _ in range(NUM_RELATIONSHIPS):
        first, second = rng.choice(NUM_OBJECTS, 2, replace=False)
        predicate = str(rng.choice(predicates))
        relationships.append(
            Relationship(subject=objects[first].id, predicate=predicate, object=objects[second].id)
        )
    return SceneGraph(objects=objects, relationships=tuple(relationships))


def _picture(graph: SceneGraph, size: tuple[int, int], rng: np.random.Generator) -> bytes:
    from PIL import Image, ImageDraw

    image = Image.new("RGB", size, (236, 236, 236))
    draw = ImageDraw.Draw(image)
    for item in graph.objects:
        draw.rectangle(item.bbox, outline=tuple(map(int, rng.integers(0, 255, 3))), width=4)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=90)
    return buffer.getvalue()
