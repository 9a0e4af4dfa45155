"""The groups that a run recorded, with their pictures."""

import hashlib
from collections.abc import Iterator
from functools import lru_cache

from PIL import Image
from pydantic import ValidationError

from scene_data.reading.images import image_bytes
from scene_data.reading.rows import RowError
from scene_data.reading.sources import Rows, open_rows
from scene_graph.boxes import BoxSpace
from scene_graph.drawing import draw_png
from scene_graph.graph import Relationship, SceneGraph, SceneObject
from scene_graph.parsing import parse_completion
from services.errors import InvalidInputError, SggError, TooLargeError
from services.images import ImageStore, decode_image
from services.run_folder import RunFolder
from services.schemas.common import ImageRef
from services.schemas.groups import GroupReference, TrainGroup
from services.schemas.rewards import Task

_NUM_TRIED = 8
"""Rows from a group's on: unusable ones before it, which its number does not count, shift it."""


def recorded_picture(
    run: RunFolder, train: str | None, sha256: str, row: int | None
) -> bytes | None:
    """The encoded picture of a group: from the run's image store, else from the dataset.

    Args:
        run: The run's folder. Its store has the pictures of groups that are being sampled.
        train: The dataset, `data.train`; a later look at the same one opens nothing again. A
            relative path counts from where the run was started: a folder above the run's own.
        sha256: The picture's.
        row: The group's. Without one, or without a dataset, only the store is looked into.

    Returns:
        None where neither has it any more.
    """
    try:
        return ImageStore(run.images).path(ImageRef(sha256=sha256, num_bytes=1)).read_bytes()
    except (OSError, ValidationError):
        pass
    rows = None if train is None or row is None else _rows(run.seen_from(train))
    if rows is None or row is None:
        return None
    try:
        for number in range(row, min(row + _NUM_TRIED, len(rows))):
            data = image_bytes(rows.row(number)["image"])
            if hashlib.sha256(data).hexdigest() == sha256:
                return data
    except (RowError, KeyError, OSError):
        pass
    return None


def draw_record(
    record: TrainGroup, task: Task, picture: bytes | None
) -> Iterator[tuple[str, bytes]]:
    """The graphs of a group over its picture, as PNG files: of the reference, then of each answer.

    An answer that has no graph has no drawing.

    Args:
        record: The group; where it has no reference, nothing is drawn.
        task: The run's.
        picture: The encoded file; without one the drawings are on white.

    Yields:
        `reference` or the number of the answer, and the file.
    """
    if record.reference is None:
        return
    width, height = record.reference.image_size
    image = _decoded(picture)
    yield "reference", draw_png(_reference_graph(record.reference), width, height, image)
    space, notation = BoxSpace.parse(record.reference.box_space), record.reference.notation
    for number, completion in enumerate(record.rollout.completions):
        parsed = parse_completion(completion.text, space, task=task, notation=notation)
        if parsed.status == "ok":
            yield str(number), draw_png(parsed.graph.scaled(width, height), width, height, image)


def _reference_graph(reference: GroupReference) -> SceneGraph:
    graph = reference.graph
    return SceneGraph(
        objects=tuple(SceneObject(id=item.id, bbox=item.bbox) for item in graph.objects),
        relationships=tuple(
            Relationship(subject=edge.subject, predicate=edge.predicate, object=edge.object)
            for edge in graph.relationships
        ),
    )


def _decoded(picture: bytes | None) -> Image.Image | None:
    try:
        return None if picture is None else decode_image(picture)
    except (InvalidInputError, TooLargeError):
        return None


@lru_cache(maxsize=8)
def _rows(name: str) -> Rows | None:
    """A dataset that cannot be opened now is not tried again."""
    try:
        return open_rows(name)
    except (SggError, OSError, ImportError):
        return None
