"""The order in which rows are trained on, and of a graph's parts: seeded, and so resumable."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from scene_graph.graph import SceneGraph
from services.errors import InvalidInputError


class EpochSampler:
    """Maps a position in the endless sequence of epochs to (epoch, row).

    Every epoch is a permutation of all rows and a pure function of (seed, epoch), so a position is
    all that a checkpoint has to keep, and any process derives the same order.

    Example: with 10 rows, `at(23)` is epoch 2, the fourth row of its permutation.

    Args:
        num_rows: The dataset's.
        seed: Another seed, another order.

    Raises:
        InvalidInputError: There are no rows.
    """

    def __init__(self, num_rows: int, seed: int) -> None:
        if num_rows < 1:
            raise InvalidInputError("the dataset has no rows to train on")
        self._num_rows = num_rows
        self._seed = seed

    def at(self, position: int) -> tuple[int, int]:
        """Epoch and row of a position, both counted from 0; from any thread."""
        epoch, place = divmod(position, self._num_rows)
        return epoch, int(_order(self._num_rows, self._seed, epoch)[place])


@lru_cache(maxsize=4)
def _order(num_rows: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(num_rows)


def group_id(run: str, epoch: int, index: int) -> str:
    """The name of a row's group in an epoch; the same after every restart.

    Example: `group_id("demo", 0, 17) == "demo-e0-r17"`
    """
    return f"{run}-e{epoch}-r{index}"


def shuffled_graph(graph: SceneGraph, *, seed: int, epoch: int, row: int) -> SceneGraph:
    """A graph with its objects and relationships permuted: SFT must not teach that order counts.

    Objects keep their ids, so every relationship still means the same pair.

    Args:
        graph: As annotated.
        seed: The run's.
        epoch: Another epoch, another order.
        row: Its number in the dataset; rows of one epoch are permuted independently.

    Returns:
        A pure function of the arguments: a resumed run sees what an uninterrupted one does.
    """
    random = np.random.default_rng([seed, epoch, row])
    objects = random.permutation(len(graph.objects))
    relationships = random.permutation(len(graph.relationships))
    return SceneGraph(
        objects=tuple(graph.objects[i] for i in objects),
        relationships=tuple(graph.relationships[i] for i in relationships),
    )
