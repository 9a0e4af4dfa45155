"""How alike two names are: 0 for different things, 1 for the same.

Names come normalised (`scene_graph.graph.normalise_name`). Every similarity is deterministic and
symmetric, and 1 for equal names.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]


class Similarity(Protocol):
    """Compares pairs of names, many at a time."""

    @property
    def version(self) -> str:
        """Changes whenever any similarity could change; part of a rubric's version."""

    def of_pairs(self, names: Sequence[str], left: Indices, right: Indices) -> Floats:
        """Similarities of N pairs.

        Args:
            names: The distinct names of a batch.
            left: [N] index of each pair's one name among `names`.
            right: [N] of its other name.

        Returns:
            [N] in 0..1.
        """


class ExactSimilarity:
    """1 for equal names, else 0."""

    version = "exact"

    def of_pairs(self, names: Sequence[str], left: Indices, right: Indices) -> Floats:
        """[N] 1 where a pair's names are equal."""
        equal: Floats = (left == right).astype(np.float64)
        return equal


class TableSimilarity:
    """Looked up in a symmetric table; a pair that is not in it is compared exactly.

    Takes 8 bytes times the square of the number of names that stand in a pair.

    Example: `TableSimilarity(["man", "person"], {("man", "person"): 0.8})`
    """

    def __init__(self, names: Iterable[str], pairs: Mapping[tuple[str, str], float]) -> None:
        """Build the matrix.

        Args:
            names: All names of the table, normalised.
            pairs: Similarity of two different names, 0..1, each pair once in either order; a pair
                that is missing has 0.
        """
        listed = sorted((min(pair), max(pair), value) for pair, value in pairs.items() if value > 0)
        paired = sorted({name for pair in listed for name in pair[:2]})
        self._row = {name: row for row, name in enumerate(paired)}
        # One more row than names: all zeros, for every name that stands in no pair.
        self._values = np.zeros((len(paired) + 1, len(paired) + 1))
        for left, right, value in listed:
            self._values[self._row[left], self._row[right]] = value
            self._values[self._row[right], self._row[left]] = value
        content = json.dumps([sorted(set(names)), listed])
        self.version = "table:" + hashlib.sha256(content.encode()).hexdigest()

    def of_pairs(self, names: Sequence[str], left: Indices, right: Indices) -> Floats:
        """[N] the table's values; 1 for equal names, 0 for names outside of the table."""
        outside = len(self._row)
        rows = np.array([self._row.get(name, outside) for name in names], dtype=np.int64)
        places = (rows * self._values.shape[1]).take(left) + rows.take(right)
        values: Floats = self._values.ravel().take(places)
        values[left == right] = 1.0
        return values
