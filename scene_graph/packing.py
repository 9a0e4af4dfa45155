"""Many graphs as flat arrays, so that scoring has no Python loop over objects or triplets.

The triplets of a graph stay in the order they were written in. Its objects are sorted by category,
box and, for objects that share both (twins), by the triplets around them. No score can then depend
on the order in which a graph was written, nor on the numbers in its ids.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from scene_graph.boxes import Boxes
from scene_graph.graph import GraphColumns
from scene_graph.similarity import Indices

_ROUNDS = 32
"""Twins are told apart by triplets at most this many steps away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedGraphs:
    """G graphs with O objects and E triplets, all together.

    Example: the objects of graph g are `categories[object_start[g]:object_start[g + 1]]`.
    """

    num_objects: Indices
    """[G]"""
    object_start: Indices
    """[G + 1]"""
    object_graph: Indices
    """[O] the graph of each object"""
    written: Indices
    """[O] where each object stood before sorting, counted over all graphs"""
    categories: Indices
    """[O] codes of names"""
    boxes: Boxes
    """[4, O] x1, y1, x2, y2 in fractions; zeros where graphs have no boxes (task `cls`)"""
    num_triplets: Indices
    """[G]"""
    triplet_start: Indices
    """[G + 1]"""
    triplet_graph: Indices
    """[E]"""
    subjects: Indices
    """[E] index among the O objects"""
    predicates: Indices
    """[E] codes of names"""
    objects: Indices
    """[E]"""

    def part(self, first: int, last: int) -> "PackedGraphs":
        """Graphs `first` to `last - 1`, numbered from 0."""
        begin, end = self.object_start[first], self.object_start[last]
        objects = slice(begin, end)
        begin_triplet, end_triplet = self.triplet_start[first], self.triplet_start[last]
        triplets = slice(begin_triplet, end_triplet)
        return PackedGraphs(
            num_objects=self.num_objects[first:last],
            object_start=self.object_start[first : last + 1] - begin,
            object_graph=self.object_graph[objects] - first,
            written=self.written[objects] - begin,
            categories=self.categories[objects],
            boxes=self.boxes[:, objects],
            num_triplets=self.num_triplets[first:last],
            triplet_start=self.triplet_start[first : last + 1] - begin_triplet,
            triplet_graph=self.triplet_graph[triplets] - first,
            subjects=self.subjects[triplets] - begin,
            predicates=self.predicates[triplets],
            objects=self.objects[triplets] - begin,
        )


def pack(graphs: Sequence[GraphColumns]) -> tuple[PackedGraphs, list[str]]:
    """Flat arrays of graphs from `clean_columns`, and the name of each code in them.

    Codes follow the names' alphabetical order, so that sorting by them is the same in any batch.
    """
    found: set[str] = set()
    found.update(*(g.categories for g in graphs), *(g.predicates for g in graphs))
    names = sorted(found)
    return _pack(graphs, {name: code for code, name in enumerate(names)}), names


def _pack(graphs: Sequence[GraphColumns], codes: Mapping[str, int]) -> PackedGraphs:
    num_objects = np.array([len(g.ids) for g in graphs], dtype=np.int64)
    num_triplets = np.array([len(g.predicates) for g in graphs], dtype=np.int64)
    object_start, triplet_start = starts(num_objects), starts(num_triplets)
    object_graph = np.arange(len(graphs)).repeat(num_objects)
    triplet_graph = np.arange(len(graphs)).repeat(num_triplets)
    categories = _codes((g.categories for g in graphs), codes, object_start[-1])
    boxes = _boxes(graphs, object_graph)
    offset = object_start[triplet_graph]
    subjects = offset + _flat((g.subjects for g in graphs), triplet_start[-1])
    predicates = _codes((g.predicates for g in graphs), codes, triplet_start[-1])
    objects = offset + _flat((g.objects for g in graphs), triplet_start[-1])
    order = _by_name_and_box(object_graph * len(codes) + categories, boxes)
    _part_twins(order, categories, boxes, object_graph, (subjects, predicates, objects), codes)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return PackedGraphs(
        num_objects=num_objects,
        object_start=object_start,
        object_graph=object_graph,
        written=order,
        categories=categories[order],
        boxes=boxes.take(order, axis=1),
        num_triplets=num_triplets,
        triplet_start=triplet_start,
        triplet_graph=triplet_graph,
        subjects=rank[subjects],
        predicates=predicates,
        objects=rank[objects],
    )


def starts(counts: Indices) -> Indices:
    """[N + 1] where parts of these sizes begin, one after another, and where the last one ends."""
    found = np.zeros(len(counts) + 1, dtype=np.int64)
    counts.cumsum(out=found[1:])
    return found


def _flat(parts: Iterable[Sequence[int]], count: int) -> Indices:
    return np.fromiter(chain.from_iterable(parts), np.int64, count)


def _codes(parts: Iterable[Sequence[str]], codes: Mapping[str, int], count: int) -> Indices:
    return np.fromiter(map(codes.__getitem__, chain.from_iterable(parts)), np.int64, count)


def _boxes(graphs: Sequence[GraphColumns], object_graph: Indices) -> Boxes:
    """[4, O] in fractions."""
    coordinates = np.fromiter(chain.from_iterable(g.coordinates for g in graphs), np.float64)
    if not len(coordinates):
        return np.zeros((4, len(object_graph)))
    scale = np.array([(*g.scale, *g.scale) for g in graphs]).T
    boxes: Boxes = np.ascontiguousarray(coordinates.reshape(-1, 4).T)
    boxes /= scale.take(object_graph, axis=1)
    return boxes


def _by_name_and_box(names: Indices, boxes: Boxes) -> Indices:
    """The order of objects by name, and by box where names are equal."""
    order = names.argsort(kind="stable")
    ordered = names[order]
    tied = np.zeros(len(order) + 1, dtype=np.bool_)
    np.equal(ordered[1:], ordered[:-1], out=tied[1:-1])
    among = (tied[1:] | tied[:-1]).nonzero()[0]
    part = order[among]
    order[among] = part[np.lexsort((*boxes[::-1, part], names[part]))]
    return order


def _part_twins(
    order: Indices,
    categories: Indices,
    boxes: Boxes,
    object_graph: Indices,
    triplets: tuple[Indices, Indices, Indices],
    codes: Mapping[str, int],
) -> None:
    """Sort, in place, objects of equal category and box by what surrounds them.

    Each object has a colour, at first that of its category and box; in each round the triplets
    around it and the colours of their other ends are mixed into it (Weisfeiler and Lehman's
    refinement), until no more objects can be told apart. Colours are hashes of names, so that they
    are the same in every batch.
    """
    same = np.ones(max(len(order) - 1, 0), dtype=np.bool_)
    for key in (object_graph, categories, *boxes):
        ordered = key[order]
        same &= ordered[1:] == ordered[:-1]
    if not same.any():
        return
    subjects, predicates, objects = triplets
    words = np.array([_name_hash(name) for name in codes], dtype=np.uint64)[predicates]
    place = np.concatenate([[0], np.cumsum(~same)])  # equal for twins, rising along `order`
    first = np.searchsorted(object_graph, object_graph[order], side="left")
    colour = np.empty(len(order), dtype=np.uint64)
    colour[order] = _mix((place - place[first]).astype(np.uint64))
    graphs = _mix(object_graph.astype(np.uint64))
    distinct = np.zeros(int(object_graph[-1]) + 1, dtype=np.int64)
    growing = np.ones(len(distinct), dtype=np.bool_)
    for _ in range(_ROUNDS):
        around = np.zeros_like(colour)
        np.add.at(around, subjects, _mix(words ^ _mix(colour[objects] + _OUT)))
        np.add.at(around, objects, _mix(words ^ _mix(colour[subjects] + _IN)))
        # Each graph has its own number of rounds: its colours must not depend on its neighbours.
        colour = np.where(growing[object_graph], _mix(colour ^ around), colour)
        first_seen = np.unique(colour ^ graphs, return_index=True)[1]
        found = np.bincount(object_graph[first_seen], minlength=len(distinct))
        growing &= found > distinct
        distinct = found
        if not growing.any():
            break
    by_place = np.empty(len(order), dtype=np.int64)
    by_place[order] = place
    order[:] = np.lexsort((colour, by_place))


_OUT, _IN = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scatters the bits of 64-bit numbers: the finaliser of SplitMix64 (Steele et al., 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@lru_cache(maxsize=8192)
def _name_hash(name: str) -> int:
    data = name.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
