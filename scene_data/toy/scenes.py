"""toy-scenes: rendered coloured shapes, made by seed, that a tiny model learns on a CPU in minutes.

A scene has two or three shapes (4 colours x 3 shapes) on an 8 x 8 grid of 14-pixel cells, the
patch size of Qwen2-VL: with corners anywhere else the same model needs far longer. On the second
level it has three to five, which may hide a part of one another. Objects are numbered in reading
order of their upper left corners, and each one is related to the next, so every image has exactly
one right answer (`scene_data.toy.layouts`).

Some pairs of names (`is_heldout_pair`) never meet in training; every held-out scene shows one.
"""

import io
import itertools
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from scene_data.toy.layouts import (
    CELLS,
    Cells,
    Level,
    Rng,
    overlap,
    place,
    reading_order,
    relation,
    touch,
)
from scene_data.writing import graph_row, parquet_writer
from scene_graph.graph import Relationship, SceneGraph, SceneObject

CELL = 14
"""Pixels of a grid cell."""
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
VAGUE_PREDICATE = "near"
"""In no clean scene."""
BACKGROUND = (236, 236, 236)
TRIES_OF_NAMES = {1: 1, 2: 100}
"""For one layout, by level: many, so that scenes with five shapes are not left out more often."""


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


def toy_scene(seed: int, index: int, *, heldout: bool, level: Level = 1) -> SceneGraph:
    """The graph of one scene, boxes in pixels; a pure function of its arguments."""
    rng = np.random.default_rng([seed, int(heldout), index])
    while True:
        boxes = place(rng, level)
        order = sorted(range(len(boxes)), key=lambda i: reading_order(boxes[i]))
        for _ in range(TRIES_OF_NAMES[level]):
            drawn = [str(name) for name in rng.choice(NAMES, size=len(boxes))]
            names, in_order = [drawn[i] for i in order], [boxes[i] for i in order]
            if _has_heldout_pair(names) == heldout and _visible(names, in_order, level):
                return _graph(names, in_order, level)


def render(graph: SceneGraph) -> bytes:
    """A scene as a PNG of 112 x 112 pixels; what is smaller is drawn on top of what is larger."""
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
    level: Level = 1,
) -> None:
    """Write `train.parquet` and `heldout.parquet` in the layout of `docs/data.md`.

    Args:
        folder: Made where missing; files in it are replaced.
        num_train: Training scenes.
        num_heldout: Scenes with held-out pairs; never noisy.
        seed: Other seeds give other scenes.
        noise: Errors put into the training annotations; the images stay right.
        level: 2 has more shapes, occlusion and rare predicates.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for heldout, num_rows in ((False, num_train), (True, num_heldout)):
        split = "heldout" if heldout else "train"
        with parquet_writer(folder / f"{split}.parquet") as write:
            for index in range(num_rows):
                graph = toy_scene(seed, index, heldout=heldout, level=level)
                image, image_id = render(graph), f"{split}-{seed}-{index}"
                if noise is not None and not heldout:
                    graph = spoil(graph, noise, np.random.default_rng([seed, 2, index]))
                write(graph_row(image_id, image, f"{image_id}.png", (SIDE, SIDE), graph))


def _graph(names: list[str], boxes: list[Cells], level: Level) -> SceneGraph:
    objects = tuple(
        SceneObject(
            id=f"{name}.{number}",
            bbox=(box[0] * CELL, box[1] * CELL, box[2] * CELL, box[3] * CELL),
        )
        for number, (name, box) in enumerate(zip(names, boxes, strict=True), start=1)
    )
    relationships = []
    for first, second in itertools.pairwise(range(len(boxes))):
        predicate, forward = relation(boxes[first], boxes[second], level)
        subject, other = (first, second) if forward else (second, first)
        relationships.append(
            Relationship(subject=objects[subject].id, predicate=predicate, object=objects[other].id)
        )
    return SceneGraph(objects=objects, relationships=tuple(relationships))


def _visible(names: list[str], boxes: list[Cells], level: Level) -> bool:
    """Whether no shape lies inside one of its own colour, overlaps it, or on level 2 touches it."""
    colours = [name.split()[0] for name in names]
    return not any(
        overlap(boxes[a], boxes[b]) or (level == 2 and touch(boxes[a], boxes[b]))
        for a, b in itertools.combinations(range(len(boxes)), 2)
        if colours[a] == colours[b]
    )


def _has_heldout_pair(names: list[str]) -> bool:
    return any(is_heldout_pair(*pair) for pair in itertools.combinations(names, 2))


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
