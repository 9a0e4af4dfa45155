"""The annotated graphs of an evaluation: from a dataset, or from a JSONL file of graphs."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec

from evaluation.reading.dataset_rows import decode_row
from evaluation.reading.graphs import written_graph
from evaluation.reading.jsonl import WRONG, decoded_lines, first_problem, read_lines
from evaluation.reading.lines import GraphLine, decode_graph_line, graph_lists
from evaluation.reading.problems import Place, Problems
from scene_data.dataset import SceneDataset, UnusableRowError
from scene_data.reading.chats import is_chat
from scene_data.reading.sources import open_rows
from scene_graph.cleaning import Task
from scene_graph.metrics.table import ImageGraph
from services.errors import InvalidInputError

Size = tuple[int, int]
"""Width and height of an image in pixels"""
Picture = Callable[[], bytes]
"""Reads an image file, encoded as it is"""


@dataclass(slots=True, kw_only=True)
class ReferenceImage:
    """What is there to be found in an image."""

    size: Size
    graph: ImageGraph
    place: Place
    picture: Picture | None


@dataclass(slots=True, kw_only=True)
class References:
    """All images that are evaluated, by id, in the order of their ids."""

    name: str
    images: dict[str, ReferenceImage]

    def image_bytes(self, image_id: str) -> bytes | None:
        """The encoded picture; None where there is none, or none that can be read."""
        image = self.images.get(image_id)
        picture = image.picture if image else None
        try:
            return picture() if picture else None
        except (OSError, InvalidInputError):  # a report without one picture is still a report
            return None


def image_order(image_id: str) -> tuple[int, int, str]:
    """Sorts numbers by value, then other ids by the alphabet."""
    is_number = image_id.isascii() and image_id.isdecimal() and len(image_id) < 1000
    return (0, int(image_id), image_id) if is_number else (1, 0, image_id)


def read_references(path: str, problems: Problems, task: Task = "sgg") -> References:
    """Read a `.jsonl` file of graphs, or a dataset (`docs/data.md`).

    Of several graphs of an image the first counts.

    Raises:
        InvalidInputError: There is nothing of that name, no usable image in it, or nothing of what
            the task looks for.
    """
    file = Path(path)
    if not _has_graphs(file):
        found = _collected(path, _of_dataset(path, problems, None, need_images=False))
    else:
        found = _collected(path, _of_lines(file, problems, task))
    graphs = [image.graph for image in found.images.values()]
    if not any(graph.names if task == "det" else graph.predicates for graph in graphs):
        wanted = "an object" if task == "det" else "a relation"
        raise InvalidInputError(
            f"{path} has no image with {wanted} to be found{first_problem(problems)}"
        )
    return found


def read_dataset(path: str, problems: Problems, limit: int | None = None) -> References:
    """Read the graphs of a dataset.

    Args:
        path: See `docs/data.md`.
        problems: Grows by what is wrong.
        limit: At most so many of its first usable rows.

    Raises:
        InvalidInputError: There is no dataset of that name, or no usable row in it.
    """
    return _collected(path, _of_dataset(path, problems, limit, need_images=True))


def _collected(path: str, read: Iterable[ReferenceImage]) -> References:
    """By `image_order`: COCO's AP breaks ties by it, and the bootstrap draws places."""
    images: dict[str, ReferenceImage] = {}
    for image in read:
        if str(image.place.image_id) in images:
            image.place.add("duplicate_image", "the first reference for this image counts")
            continue
        images[str(image.place.image_id)] = image
        if not image.graph.names:
            image.place.add("empty_reference", "the reference has no object")
    ordered = {image_id: images[image_id] for image_id in sorted(images, key=image_order)}
    return References(name=path, images=ordered)


def _has_graphs(file: Path) -> bool:
    """Whether each line of a file is a graph, and none is a chat's."""
    if file.suffix != ".jsonl" or not file.is_file():
        return False
    try:
        first = next((text for _, text in read_lines(file, Problems())), b"{}")
        return not is_chat(msgspec.json.decode(first, type=dict))
    except WRONG:
        return True  # whose reader counts what is wrong
    except InvalidInputError:
        return False  # a list, or rows over several lines: the dataset's reader takes those


def _of_lines(path: Path, problems: Problems, task: Task) -> Iterator[ReferenceImage]:
    decode = partial(_graph_or_row, folder=path.parent, task=task)
    for place, line in decoded_lines(path, problems, decode):
        if 0 in line.size:
            place.add("broken_line", "left out: the image has no width or no height")
            continue
        yield ReferenceImage(
            size=line.size,
            graph=written_graph(line.objects, line.relationships, line.size, place),
            place=place,
            picture=(path.parent / line.image).read_bytes if line.image else None,
        )


def _graph_or_row(text: bytes, folder: Path, task: Task) -> GraphLine:
    """Rows that say no size or write their lists in another way are lines of graphs too."""
    try:
        return decode_graph_line(text, task)
    except msgspec.ValidationError:
        return decode_row(text, folder, task)


def _of_dataset(
    path: str, problems: Problems, limit: int | None, *, need_images: bool
) -> Iterator[ReferenceImage]:
    # The protocols treat a repeated relation each in its own way: `docs/evaluation.md`.
    rows = open_rows(path, need_images=need_images)
    dataset = SceneDataset(rows, path, keep_repeated=True, need_images=need_images)
    for number in range(dataset.check.num_broken):
        listed = dataset.check.broken[number : number + 1]
        Place(problems, path).add("broken_row", f"left out: {''.join(listed)}")
    for index in range(len(dataset) if limit is None else min(len(dataset), limit)):
        try:
            sample = dataset[index]
        except UnusableRowError as error:
            Place(problems, path).add("broken_row", f"left out: {error.message}")
            continue
        except InvalidInputError as error:
            Place(problems, path).add("unreadable_image", f"left out: {error.message}")
            continue
        place = Place(problems, path, None, sample.image_id)
        size = (sample.width, sample.height)
        yield ReferenceImage(
            size=size,
            graph=written_graph(*graph_lists(sample.graph), size, place),
            place=place,
            picture=_picture(dataset, index) if sample.image_bytes else None,
        )


def _picture(dataset: SceneDataset, index: int) -> Picture:
    return lambda: dataset[index].image_bytes
