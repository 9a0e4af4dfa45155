"""The optimal assignment of the first row of a cost matrix, of the first two, and so on to all."""

from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

from scene_graph.similarity import Floats, Indices


class Held(NamedTuple):
    """A cell of the matrix and how long it is part of the optimum.

    Example: `Held(0, 2, 1, 4)`: row 0 has column 2 from the first row on until the fourth comes.
    """

    row: int
    column: int
    begin: int
    """Number of rows from which on it is"""
    end: int
    """Number of rows from which on it is no more; one over all rows where it stays"""


def over_prefixes(cost: Floats) -> Indices:
    """The cells of the cheapest assignment of each number of first rows.

    A row whose cheapest column is free takes it, and no other assignment can be cheaper: without
    that row the others cost at least what they cost now. Only other rows are solved for, each time
    anew.

    Args:
        cost: [N, M]

    Returns:
        [H, 4] of `Held`, in any order. Of assignments of equal cost any one.
    """
    found: list[Held] = []
    owner, since = [-1] * cost.shape[1], [0] * cost.shape[1]  # of each column

    def change(column: int, row: int, number: int) -> None:
        if owner[column] >= 0:
            found.append(Held(owner[column], column, since[column], number))
        owner[column], since[column] = row, number

    for row, column in enumerate(cost.argmin(axis=1).tolist()):
        if owner[column] < 0:
            owner[column], since[column] = row, row + 1
            continue
        best = np.full(len(owner), -1)
        rows, columns = linear_sum_assignment(cost[: row + 1])
        best[columns] = rows
        for changed in (best != owner).nonzero()[0].tolist():
            change(changed, int(best[changed]), row + 1)
    for column in range(len(owner)):
        change(column, -1, len(cost) + 1)
    return np.array(found, dtype=np.int64).reshape(-1, 4)
