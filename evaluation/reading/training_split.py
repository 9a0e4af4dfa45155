"""What the training split has: for zero-shot recall, and for how common a predicate is."""

from collections import Counter
from dataclasses import dataclass, field

from scene_data.reading.rows import RowError, read_graph
from scene_data.reading.sources import Row, open_rows
from scene_graph.graph import NORMAL_IDS, Relationship
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
    split = TrainingSplit()
    for row in open_rows(path, need_images=False).annotations():
        for edge in _relationships(row):
            name = NORMAL_IDS[edge.predicate][0]
            ends = NORMAL_IDS[edge.subject][1], NORMAL_IDS[edge.object][1]
            split.triplets.add((ends[0], name, ends[1]))
            split.predicates[name] += 1
    if not split.triplets:
        raise InvalidInputError(f"--train: {path} has no relation")
    return split


def _relationships(row: Row | RowError) -> tuple[Relationship, ...]:
    """None of a broken row: training leaves it out too."""
    try:
        return () if isinstance(row, RowError) else read_graph(row)[0].relationships
    except RowError:
        return ()
