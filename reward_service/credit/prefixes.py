"""The graphs that stand after each element of B completions, for the same terms as whole graphs.

The graph after c elements has the first c objects, or all of them and the first triplets. Each is a
place of a grid [B, W], W one over the most elements of a completion; after a completion's last
element nothing changes. Sums over a graph are sums of what each element adds or takes away, so that
a pair is looked at once and not once for every graph that it is part of.
"""

from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np

from reward_service.credit.assignments import over_prefixes
from reward_service.terms import ComparedBatch
from scene_graph.matching import Flags
from scene_graph.packing import starts
from scene_graph.similarity import Floats, Indices


@dataclass(frozen=True, kw_only=True)
class PrefixBatch(ComparedBatch):
    """As `ComparedBatch`, with a value for each of the B W graphs, completion by completion."""

    asked: Flags
    """[B] whose values are looked at; nothing is solved for the others, and theirs are wrong"""

    @classmethod
    def of(cls, batch: ComparedBatch, asked: Flags) -> "PrefixBatch":
        """The graphs of a batch's completions while they are written."""
        whole = {field.name: getattr(batch, field.name) for field in fields(batch)}
        return cls(**whole, asked=asked)

    @cached_property
    def num_elements(self) -> Indices:
        """[B] objects and triplets of each completion; for `cls`, triplets."""
        counts: Indices = self._all_objects + self.comparison.predicted.num_triplets
        return counts

    @cached_property
    def width(self) -> int:
        """W, one over the most elements of a completion."""
        return int(self.num_elements.max(initial=0)) + 1

    @cached_property
    def _all_objects(self) -> Indices:
        num_objects = self.comparison.predicted.num_objects
        return num_objects if self.comparison.pairs is not None else np.zeros_like(num_objects)

    @property
    def num_objects(self) -> Indices:
        """[B W]."""
        counts: Indices = np.minimum(np.arange(self.width), self._all_objects[:, None])
        return counts.ravel()

    @property
    def num_reference_objects(self) -> Indices:
        """[B W]."""
        return super().num_reference_objects.repeat(self.width)

    @property
    def num_reference_triplets(self) -> Indices:
        """[B W]."""
        return super().num_reference_triplets.repeat(self.width)

    @property
    def num_annotated_triplets(self) -> Floats:
        """[B W]."""
        annotated = self.comparison.annotated.nonzero()[0]
        owner = self.comparison.predicted.triplet_graph[annotated]
        return self._running(owner, self._triplet_place[annotated], np.ones(len(annotated)))

    @property
    def matched(self) -> Indices:
        """[H] the pairs of objects that are matched in some graph, once for each time."""
        return self._matched[0]

    def sum_matched(self, values: Floats | Flags) -> Floats:
        """[B W] sums of [H] values of the matched pairs."""
        pairs, begin, end = self._matched
        owner = self.comparison.predicted.object_graph[self.pairs.predicted[pairs]]
        return self._running(owner, begin, values, end)

    def sum_best(self, which: Flags, weights: Floats | None = None) -> Floats:
        """[B W] as of whole graphs; what a triplet adds is by how much it beats all before it."""
        triplets, among = self.comparison.triplets, which.nonzero()[0]
        instance, similarity = triplets.instance[among], triplets.similarity[among]
        # Pairs stand by instance, and in it in the order of writing. Ranks are whole numbers: a
        # greatest one so far can be had of all instances at once, without rounding.
        levels, rank = np.unique(similarity, return_inverse=True)
        best = np.maximum.accumulate(instance * len(levels) + rank)
        first = np.diff(instance, prepend=-1) > 0
        reached = levels[best - instance * len(levels)]
        gain = reached - np.where(first, 0.0, np.roll(reached, 1))
        if weights is not None:
            gain = gain * weights[instance]
        place = self._triplet_place[triplets.predicted[among]]
        return self._running(triplets.owner[among], place, gain)

    def sum_instances(self, weights: Floats) -> Floats:
        """[B W]."""
        return super().sum_instances(weights).repeat(self.width)

    def sum_assigned(self) -> Floats:
        """[B W]."""
        return self._sum_one_to_one(self.comparison.triplets.overlap)

    def sum_assigned_hits(self) -> Floats:
        """[B W]."""
        triplets = self.comparison.triplets
        return self._sum_one_to_one(triplets.overlap & triplets.same_names)

    @cached_property
    def _triplet_place(self) -> Indices:
        """[E] how many elements there are with each predicted triplet."""
        p = self.comparison.predicted
        number = np.arange(len(p.triplet_graph)) - p.triplet_start[p.triplet_graph]
        places: Indices = number + self._all_objects[p.triplet_graph] + 1
        return places

    @cached_property
    def _matched(self) -> tuple[Indices, Indices, Indices]:
        """[H] pairs, and from how many and until how many elements they are matched."""
        p, r = self.comparison.predicted, self.comparison.reference
        found, where = [np.empty((0, 4), dtype=np.int64)], [np.empty(0, dtype=np.int64)]
        num_columns = r.num_objects[self.comparison.group]
        for graph in self.asked.nonzero()[0].tolist():
            rows, columns = int(p.num_objects[graph]), int(num_columns[graph])
            if rows and columns:
                first = int(p.object_start[graph])
                order = first + p.written[first : first + rows].argsort()
                start = int(self.pairs.start[first])
                cost = self.pairs.cost[start : start + rows * columns].reshape(rows, columns)
                held = over_prefixes(cost[order - first])
                held[held[:, 3] > rows, 3] = self.width  # it stays
                found.append(held)
                where.append(self.pairs.start[order[held[:, 0]]])
        _, column, begin, end = np.concatenate(found).T
        return np.concatenate(where) + column, begin, end

    def _sum_one_to_one(self, candidates: Flags) -> Floats:
        """[B W] the greatest sum of similarity over one-to-one pairs of `candidates` [K]."""
        triplets = self.comparison.triplets
        among = (candidates & self.asked[triplets.owner]).nonzero()[0]
        left, right = triplets.predicted[among], triplets.instance[among]
        alone = (np.bincount(left)[left] == 1) & (np.bincount(right)[right] == 1)
        free, contested = among[alone], among[~alone]
        total = self._running(
            triplets.owner[free],
            self._triplet_place[triplets.predicted[free]],
            triplets.similarity[free],
        )
        edges = starts(np.bincount(triplets.owner[contested], minlength=len(self.comparison.group)))
        for graph in np.diff(edges).nonzero()[0]:
            total += self._contested(contested[edges[graph] : edges[graph + 1]])
        return total

    def _contested(self, pairs: Indices) -> Floats:
        """[B W] the same of one completion's pairs."""
        triplets = self.comparison.triplets
        left, row = np.unique(triplets.predicted[pairs], return_inverse=True)
        _, column = np.unique(triplets.instance[pairs], return_inverse=True)
        table = np.zeros((len(left), int(column.max()) + 1))
        table[row, column] = triplets.similarity[pairs]
        rows, columns, begin, end = over_prefixes(-table).T
        place = np.append(self._triplet_place[left], self.width)
        owner = np.full(len(rows), triplets.owner[pairs[0]])
        return self._running(owner, place[begin - 1], table[rows, columns], place[end - 1])

    def _running(
        self, owner: Indices, begin: Indices, values: Floats | Flags, end: Indices | None = None
    ) -> Floats:
        """[B W] sums of values by completion, each from `begin` elements on until `end`."""
        shape = len(self.comparison.group), self.width + 1
        added = np.bincount(owner * shape[1] + begin, values, shape[0] * shape[1])
        if end is not None:
            added = added - np.bincount(owner * shape[1] + end, values, shape[0] * shape[1])
        return added.reshape(shape)[:, :-1].cumsum(axis=1, dtype=np.float64).ravel()
