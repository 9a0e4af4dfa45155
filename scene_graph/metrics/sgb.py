"""Recall as Scene-Graph-Benchmark.pytorch counts it, for comparison with published tables only.

The convention (`evaluation/vg/vg_eval.py`, `sgg_eval.py`, which R1-SGG's evaluation carries too):

- an image without reference relations or without predicted relations is left out;
- rows (predicted relations) count in the order they were written; a reference among the first K is
  found if any row has equal names and both boxes at IoU >= 0.5, sides being x2 - x1 + 1;
- without graph constraint, rows make a dense table [rows, columns] with the row's score at its
  predicate and 0 elsewhere, and its first 100 cells by score are the predictions. Where fewer than
  100 cells have a score, cells of score 0 are among them and may hit; which ones is up to numpy's
  default sort, here as there.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from scene_graph.metrics.hits import found_by_any, positions, scores, triplet_pairs
from scene_graph.metrics.ratio import RatioMetric
from scene_graph.metrics.recall import Triplet, at_cuts, listed, mean_image_recall
from scene_graph.metrics.table import GraphTable
from scene_graph.similarity import Floats, Indices

NUM_CELLS = 100
"""The best cells of an image's table that are its predictions without graph constraint."""
_CELLS_AT_ONCE = 1 << 21


def sgb(
    predicted: GraphTable,
    reference: GraphTable,
    *,
    predicates: Sequence[str] | None = None,
    num_columns: int | None = None,
    seen: Collection[Triplet] | None = None,
) -> dict[str, RatioMetric]:
    """`recall@K`, `mean_recall@K`, `zero_shot_recall@K`, and these with `ng_`; K = 20, 50, 100.

    Args:
        predicted: From `tabulate`, like `reference`.
        reference: The same images.
        predicates: The vocabulary's, in its order, normalised. Predicted relations with others
            cannot be written in that table and are left out. None: those of both sides, in the
            alphabet's order; mean recall is then over those in references.
        num_columns: The dense table's; more than there are predicates leaves columns of zeros,
            as R1-SGG has them (150 for VG150's 50 predicates). The predicates' number if None.
        seen: A set of the triplets of names in the training split: the others are zero-shot. No
            zero-shot recall if None.
    """
    names = predicted.predicate_names if predicates is None else predicates
    columns = _codes(names, predicted.predicate_names)
    rows, row_ranks = _rows(predicted, columns)
    cells, cell_ranks = _best_cells(rows, columns, num_columns or len(columns))
    counted = (rows.relations_of_image > 0)[reference.relation_image]
    unseen = None if seen is None else counted & ~listed(reference, seen)
    num_predicates = len(np.unique(reference.predicates) if predicates is None else predicates)
    mean_recall = partial(mean_image_recall, num_predicates=num_predicates)
    metrics: dict[str, RatioMetric] = {}
    for prefix, table, places in (("", rows, row_ranks), ("ng_", cells, cell_ranks)):
        pairs = triplet_pairs(table, reference, plus_one=True)
        ranks = found_by_any(pairs, places, len(counted))
        metrics |= at_cuts(prefix, ranks, counted, unseen, reference, mean_recall)
    return metrics


def _codes(names: Sequence[str], known: Sequence[str]) -> Indices:
    """[names] codes; -1 for a name that no graph has."""
    code = {name: i for i, name in enumerate(known)}
    return np.array([code.get(name, -1) for name in names], dtype=np.int64)


def _rows(table: GraphTable, columns: Indices) -> tuple[GraphTable, Indices]:
    """The relations whose predicate has a column, as written, and [E] their places in the image."""
    kept = np.flatnonzero(np.isin(table.predicates, columns))
    part = table.with_relations(kept)
    return part, positions(part.relation_image, table.num_images)


def _best_cells(rows: GraphTable, columns: Indices, num_columns: int) -> tuple[GraphTable, Indices]:
    """The best cells of each image's dense table, as relations, and [E] their ranks in the image.

    Those of no predicate are left out.
    """
    if num_columns < len(columns):
        raise ValueError(f"{num_columns} columns do not hold {len(columns)} predicates")
    code = np.concatenate((columns, np.full(num_columns - len(columns), -1)))
    parts = [np.empty((3, 0), dtype=np.int64)]
    for relations in _equal_sizes(rows.relations_of_image, num_columns):
        order = _best(_dense(rows, relations, code))
        relation = np.take_along_axis(relations, order // num_columns, axis=1)
        rank = np.broadcast_to(np.arange(order.shape[1]), order.shape)
        cells = np.stack((relation, code[order % num_columns], rank)).reshape(3, -1)
        parts.append(cells[:, cells[1] >= 0])
    relation, predicate, rank = np.concatenate(parts, axis=1)
    by_image = np.argsort(rows.relation_image[relation], kind="stable")
    relation, predicate, rank = relation[by_image], predicate[by_image], rank[by_image]
    return replace(rows.with_relations(relation), predicates=predicate), rank


def _equal_sizes(num_rows: Indices, num_columns: int) -> Iterator[Indices]:
    """[I, n] rows of I images that have n rows each, few enough images to sort at once."""
    first = num_rows.cumsum() - num_rows
    for n in np.unique(num_rows[num_rows > 0]).tolist():
        begins = first[num_rows == n]
        at_once = max(1, _CELLS_AT_ONCE // (n * num_columns))
        for i in range(0, len(begins), at_once):
            yield begins[i : i + at_once, None] + np.arange(n)


def _dense(rows: GraphTable, relations: Indices, code: Indices) -> Floats:
    """[I, n, columns] the score of each row at its predicate, 0 elsewhere."""
    column = np.zeros(len(rows.predicate_names), dtype=np.int64)
    column[code[code >= 0]] = np.flatnonzero(code >= 0)
    table = np.zeros((*relations.shape, len(code)))
    where = column[rows.predicates[relations]][..., None]
    np.put_along_axis(table, where, scores(rows)[relations][..., None], axis=2)
    return table


def _best(table: Floats) -> Indices:
    """[I, 100] the cells of each image from the highest score on; fewer if it has fewer."""
    flat = -table.reshape(len(table), -1)
    return np.argsort(flat, axis=1)[:, :NUM_CELLS]
