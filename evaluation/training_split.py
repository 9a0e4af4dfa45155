"""What the training split has: for zero-shot recall, and for how common a predicate is."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from evaluation.jsonl import WRONG, read_lines
from evaluation.lines import GraphLine
from evaluation.problems import Problems
from scene_data.rows import RowError, read_graph
from scene_data.sources import open_rows
from scene_graph.graph import NORMAL_IDS
from services.errors import InvalidInputError

Triplet = tuple[str, str, str]
"""Names of subject, predicate and object, normalised"""


@dataclass(slots=True, kw_only=True)
class TrainingSplit:
    """Relations of all its images together."""

    triplets: set[Triplet] = field(default_factory=set)
    predicates: Counter[str] = field(default_factory=Counter)
    """How many relations have each"""


def read_training_split(path: str) -> TrainingSplit:
    """Read all relations of a dataset or a `.jsonl` file of graphs; no picture is opened.

    Raises:
        InvalidInputError: There is nothing of that name, or no relation in it.
    """
    is_lines = Path(path).suffix == ".jsonl" and Path(path).is_file()
    split = TrainingSplit()
    for subject, predicate, object_ in _of_lines(Path(path)) if is_lines else _of_rows(path):
        name = NORMAL_IDS[predicate][0]
        split.triplets.add((NORMAL_IDS[subject][1], name, NORMAL_IDS[object_][1]))
        split.predicates[name] += 1
    if not split.triplets:
        raise InvalidInputError(f"--train: {path} has no relation")
    return split


def _of_rows(path: str) -> Iterator[Triplet]:
    """Ids as they were written."""
    for row in open_rows(path, need_images=False).annotations():
        try:
            edges = read_graph(row)[0].relationships if not isinstance(row, RowError) else ()
        except RowError:  # training leaves such a row out too
            continue
        yield from ((edge.subject, edge.predicate, edge.object) for edge in edges)


def _of_lines(path: Path) -> Iterator[Triplet]:
    decoder = msgspec.json.Decoder(GraphLine)
    for place, text in read_lines(path, Problems()):
        try:
            line = decoder.decode(text)
        except WRONG as error:
            raise InvalidInputError(f"--train: {path}:{place.line}: {error}") from error
        yield from ((edge.subject, edge.predicate, edge.object) for edge in line.relationships)
