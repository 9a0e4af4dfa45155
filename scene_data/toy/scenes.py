"""toy-scenes: rendered coloured shapes, made by seed, that a tiny model learns on a CPU in minutes.

A scene has two or three shapes (4 colours x 3 shapes) on an 8 x 8 grid of 14-pixel cells, the
patch size of Qwen2-VL: with corners anywhere else the same model needs far longer. Objects are
numbered in reading order of their upper left corners, and each one is related to the next, so every
image has exactly one right answer.

Some pairs of names (`is_heldout_pair`) never meet in training; every held-out scene shows one.
"""

import io
import itertools
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from scene_data.writing import graph_row, parquet_writer
from scene_graph.graph import Relationship, SceneGraph, SceneObject

CELL = 14
"""Pixels of a grid cell."""
CELLS = 8
SIDE = CELL * CELLS
"""Pixels of the image's sides: 112."""
COLOURS = {
    "red": (214, 39, 40),
    "green": (44, 160, 44),
    "blue": (31, 87, 220),
    "yellow": (240, 200, 20),
}
SHAPES = ("square", "circle", "triangle")
NAMES = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
PREDICATES = ("left of", "right of", "above", "inside")
VAGUE_PREDICATE = "near"
"""In no clean scene."""
BACKGROUND = (236, 236, 236)
CONTAINMENT_RATE = 0.35

Cells = tuple[int, int, int, int]
"""x1, y1, x2, y2 in grid cells."""
Rng = np.random.Generator


@dataclass(frozen=True, slots=True, kw_only=True)
class ToyNoise:
    """Rates at which annotations are spoilt, as human ones are. For SFT targets only.

    Example: `ToyNoise(names=0.25, boxes=0.35, predicates=0.6)`
    """

    names: float = 0.0
    """Objects whose colour or shape is wrong."""
    boxes: float = 0.0
    """Boxes shifted by one cell."""
    predicates: float = 0.0
    """Predicates that only say `near`, as people often do where a better word exists."""


ANNOTATOR_NOISE = ToyNoise(names=0.25, boxes=0.35, predicates=0.6)
"""What the shipped start checkpoint was trained on."""


def is_heldout_pair(first: str, second: str) -> bool:
    """Whether two `NAMES` never meet in training: 10 of the 66 pairs of different names."""
    a, b = NAMES.index(first), NAMES.index(second)
    return a != b and (a + b) % 6 == 0


def toy_scene(seed: int, index: int, *, heldout: bool) -> SceneGraph:
    """The graph of one scene, boxes in pixels; a pure function of its arguments."""
    rng = np.random.default_rng([seed, int(heldout), index])
    while True:
        boxes = _place(rng)
        names = [str(name) for name in rng.choice(NAMES, size=len(boxes))]
        order = sorted(range(len(boxes)), key=lambda i: (boxes[i][1], boxes[i][0]))
        graph = _graph([names[i] for i in order], [boxes[i] for i in order])
        if _visible(graph) and _has_heldout_pair(graph) == heldout:
            return graph


def render(graph: SceneGraph) -> bytes:
    """A scene as a PNG of 112 x 112 pixels; what is inside is drawn on top of what is around."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (SIDE, SIDE), BACKGROUND)
    draw = ImageDraw.Draw(image)
    for item in sorted(graph.objects, key=lambda o: o.bbox[0] - o.bbox[2]):
        colour, shape = item.category.split()
        x1, y1, x2, y2 = item.bbox
        corners = (x1, y1, x2 - 1, y2 - 1)
        if shape == "square":
            draw.rectangle(corners, fill=COLOURS[colour])
        elif shape == "circle":
            draw.ellipse(corners, fill=COLOURS[colour])
        else:
            draw.polygon(
                [((x1 + x2 - 1) / 2, y1), (x1, y2 - 1), (x2 - 1, y2 - 1)], fill=COLOURS[colour]
            )
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def spoil(graph: SceneGraph, noise: ToyNoise, rng: Rng) -> SceneGraph:
    """A copy of a scene's graph with errors at the rates of `noise`; still a well-formed graph."""
    objects = tuple(_spoil_object(item, noise, rng) for item in graph.objects)
    new_id = {old.id: new.id for old, new in zip(graph.objects, objects, strict=True)}
    relationships = tuple(
        Relationship(
            subject=new_id[r.subject],
            predicate=VAGUE_PREDICATE if rng.random() < noise.predicates else r.predicate,
            object=new_id[r.object],
        )
        for r in graph.relationships
    )
    return SceneGraph(objects=objects, relationships=relationships)


def make_toy(
    folder: Path,
    *,
    num_train: int = 2000,
    num_heldout: int = 256,
    seed: int = 0,
    noise: ToyNoise | None = None,
) -> None:
    """Write `train.parquet` and `heldout.parquet` in the layout of `docs/data.md`.

    Args:
        folder: Made where missing; files in it are replaced.
        num_train: Training scenes.
        num_heldout: Scenes with held-out pairs; never noisy.
        seed: Other seeds give other scenes.
        noise: Errors put into the training annotations; the images stay right.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for heldout, num_rows in ((False, num_train), (True, num_heldout)):
        split = "heldout" if heldout else "train"
        with parquet_writer(folder / f"{split}.parquet") as write:
            for index in range(num_rows):
                graph = toy_scene(seed, index, heldout=heldout)
                image, image_id = render(graph), f"{split}-{seed}-{index}"
                if noise is not None and not heldout:
                    graph = spoil(graph, noise, np.random.default_rng([seed, 2, index]))
                write(graph_row(image_id, image, f"{image_id}.png", (SIDE, SIDE), graph))


def _place(rng: Rng) -> list[Cells]:
    """Boxes of two or three shapes that do not overlap, but for one that may lie inside another."""
    num_shapes = int(rng.integers(2, 4))
    while True:
        boxes: list[Cells] = []
        if rng.random() < CONTAINMENT_RATE:
            outer = _square(rng, int(rng.integers(4, 6)))
            room = outer[2] - outer[0] - 3
            x, y = (side + int(rng.integers(1, room + 1)) for side in outer[:2])
            boxes = [outer, (x, y, x + 2, y + 2)]
        while len(boxes) < num_shapes:
            boxes.append(_square(rng, int(rng.integers(2, 5))))
        pairs = itertools.combinations(boxes, 2)
        if all(not _overlap(*pair) or _contains(*pair) for pair in pairs):
            return boxes


def _square(rng: Rng, side: int) -> Cells:
    x, y = (int(v) for v in rng.integers(0, CELLS - side + 1, size=2))
    return x, y, x + side, y + side


def _overlap(a: Cells, b: Cells) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _contains(outer: tuple[float, ...], inner: tuple[float, ...]) -> bool:
    """With a margin on every side."""
    return (
        outer[0] < inner[0] and outer[1] < inner[1] and outer[2] > inner[2] and outer[3] > inner[3]
    )


def _graph(names: list[str], boxes: list[Cells]) -> SceneGraph:
    objects = tuple(
        SceneObject(
            id=f"{name}.{number}",
            bbox=(box[0] * CELL, box[1] * CELL, box[2] * CELL, box[3] * CELL),
        )
        for number, (name, box) in enumerate(zip(names, boxes, strict=True), start=1)
    )
    pairs = itertools.pairwise(objects)
    return SceneGraph(objects=objects, relationships=tuple(_relate(a, b) for a, b in pairs))


def _relate(first: SceneObject, second: SceneObject) -> Relationship:
    """Containment, else the direction in which the centres are further apart; sideways if equal."""
    if _contains(first.bbox, second.bbox):
        return Relationship(subject=second.id, predicate="inside", object=first.id)
    if _contains(second.bbox, first.bbox):
        return Relationship(subject=first.id, predicate="inside", object=second.id)
    right = second.bbox[0] + second.bbox[2] - first.bbox[0] - first.bbox[2]
    down = second.bbox[1] + second.bbox[3] - first.bbox[1] - first.bbox[3]
    predicate = "left of" if right > 0 else "right of"
    if abs(down) > abs(right):
        predicate = "above"  # reading order: the first one is never below
    return Relationship(subject=first.id, predicate=predicate, object=second.id)


def _visible(graph: SceneGraph) -> bool:
    """Whether no shape lies inside one of its own colour."""
    return not any(
        _contains(a.bbox, b.bbox) and a.category.split()[0] == b.category.split()[0]
        for a in graph.objects
        for b in graph.objects
    )


def _has_heldout_pair(graph: SceneGraph) -> bool:
    pairs = itertools.combinations((item.category for item in graph.objects), 2)
    return any(is_heldout_pair(*pair) for pair in pairs)


def _spoil_object(item: SceneObject, noise: ToyNoise, rng: Rng) -> SceneObject:
    colour, shape = item.category.split()
    if rng.random() < noise.names:
        if rng.random() < 0.5:
            colour = str(rng.choice([c for c in COLOURS if c != colour]))
        else:
            shape = str(rng.choice([s for s in SHAPES if s != shape]))
    spoilt = replace(item, id=f"{colour} {shape}.{item.id.rpartition('.')[2]}")
    return replace(spoilt, bbox=_shift(item.bbox, rng)) if rng.random() < noise.boxes else spoilt


def _shift(bbox: tuple[float, float, float, float], rng: Rng) -> tuple[float, float, float, float]:
    """One cell in one of the directions that stay inside the image."""
    x1, y1, x2, y2 = bbox
    moves = [
        (x1 + dx, y1 + dy, x2 + dx, y2 + dy)
        for dx, dy in ((CELL, 0), (-CELL, 0), (0, CELL), (0, -CELL))
        if min(x1 + dx, y1 + dy) >= 0 and max(x2 + dx, y2 + dy) <= SIDE
    ]
    return moves[int(rng.integers(len(moves)))]
