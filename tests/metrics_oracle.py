"""The three protocols in plain loops, image by image: the metrics must agree with them.

Written from the definitions (and, for `sgb`, in the manner of Scene-Graph-Benchmark.pytorch: arrays
of an image, unions of matches) and sharing nothing with `scene_graph.metrics` but `ImageGraph`.
"""

from collections import defaultdict
from collections.abc import Sequence
from functools import reduce

import numpy as np

from scene_graph.metrics.table import ImageGraph

CUTS = (20, 50, 100)
Box = tuple[float, float, float, float]
Names = tuple[str, str, str]
Relation = tuple[Names, Box, Box]
"""Names, box of the subject, box of the object"""
Values = dict[str, float]


def box(graph: ImageGraph, item: int) -> Box:
    x1, y1, x2, y2 = graph.boxes[4 * item : 4 * item + 4]
    return x1, y1, x2, y2


def relations(graph: ImageGraph) -> list[Relation]:
    rows = zip(graph.subjects, graph.predicates, graph.objects, strict=True)
    return [((graph.names[s], p, graph.names[o]), box(graph, s), box(graph, o)) for s, p, o in rows]


def relation_scores(graph: ImageGraph) -> list[float]:
    of_objects = graph.scores or [1.0] * len(graph.names)
    own = graph.relation_scores or [1.0] * len(graph.predicates)
    return [
        of_objects[s] * of_objects[o] * r
        for s, o, r in zip(graph.subjects, graph.objects, own, strict=True)
    ]


def overlap(a: Box, b: Box, extra: float = 0.0) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]) + extra)
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]) + extra)
    area_a = (a[2] - a[0] + extra) * (a[3] - a[1] + extra)
    area_b = (b[2] - b[0] + extra) * (b[3] - b[1] + extra)
    union = area_a + area_b - width * height
    return width * height / union if width * height > 0 else 0.0


def hit(a: Relation, b: Relation, extra: float = 0.0) -> bool:
    return a[0] == b[0] and overlap(a[1], b[1], extra) >= 0.5 and overlap(a[2], b[2], extra) >= 0.5


def most_hits(edges: Sequence[Sequence[int]]) -> int:
    """The greatest number of rows that can each have a column of their own (Kuhn)."""
    owner: dict[int, int] = {}

    def claim(row: int, tried: set[int]) -> bool:
        for column in edges[row]:
            if column not in tried:
                tried.add(column)
                if column not in owner or claim(owner[column], tried):
                    owner[column] = row
                    return True
        return False

    return sum(claim(row, set()) for row in range(len(edges)))


def claimed(predicted: Sequence[Relation], reference: Sequence[Relation]) -> int:
    return most_hits([[j for j, r in enumerate(reference) if hit(p, r)] for p in predicted])


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def ranked(graph: ImageGraph, *, constrained: bool) -> list[Relation]:
    scores, rows = relation_scores(graph), relations(graph)
    kept, pairs = [], set()
    for i in sorted(range(len(rows)), key=lambda i: -scores[i]):
        pair = graph.subjects[i], graph.objects[i]
        if not constrained or pair not in pairs:
            kept.append(rows[i])
        pairs.add(pair)
    return kept


def without_repeats(graph: ImageGraph) -> list[Relation]:
    keys = list(zip(graph.subjects, graph.predicates, graph.objects, strict=True))
    return [row for i, row in enumerate(relations(graph)) if keys[i] not in keys[:i]]


def strict(
    predictions: Sequence[ImageGraph], references: Sequence[ImageGraph], seen: set[Names]
) -> Values:
    wanted = [without_repeats(graph) for graph in references]
    values: Values = {}
    for prefix, constrained in (("", True), ("ng_", False)):
        rows = [ranked(graph, constrained=constrained) for graph in predictions]
        for k in CUTS:
            first = [image[:k] for image in rows]
            values |= _strict_at(f"{prefix}{{}}@{k}", first, wanted, seen)
    return values | _shares(predictions, wanted) | _object_shares(predictions, references)


def _strict_at(
    name: str, first: list[list[Relation]], wanted: list[list[Relation]], seen: set[Names]
) -> Values:
    images = list(zip(first, wanted, strict=True))
    hits: dict[str, int] = defaultdict(int)
    counts: dict[str, int] = defaultdict(int)
    for p, r in images:
        for predicate in {row[0][1] for row in r}:
            of_predicate = [row for row in r if row[0][1] == predicate]
            hits[predicate] += claimed(p, of_predicate)
            counts[predicate] += len(of_predicate)
    unseen = [(p, [row for row in r if row[0] not in seen]) for p, r in images]
    return {
        name.format("recall"): mean([claimed(p, r) / len(r) for p, r in images if r]),
        name.format("mean_recall"): mean([hits[p] / counts[p] for p in counts]),
        name.format("zero_shot_recall"): mean([claimed(p, r) / len(r) for p, r in unseen if r]),
    }


def _shares(predictions: Sequence[ImageGraph], wanted: list[list[Relation]]) -> Values:
    images = [(relations(p), r) for p, r in zip(predictions, wanted, strict=True) if r]
    return {
        "triplet_recall": mean([claimed(p, r) / len(r) for p, r in images]),
        "triplet_precision": mean([claimed(p, r) / len(p) if p else 0.0 for p, r in images]),
        "triplet_f1": mean([2 * claimed(p, r) / (len(p) + len(r)) for p, r in images]),
    }


def _object_shares(predictions: Sequence[ImageGraph], references: Sequence[ImageGraph]) -> Values:
    images = [(p, r) for p, r in zip(predictions, references, strict=True) if r.names]
    hits = [
        most_hits(
            [
                [
                    j
                    for j, name in enumerate(r.names)
                    if name == p.names[i] and overlap(box(p, i), box(r, j)) >= 0.5
                ]
                for i in range(len(p.names))
            ]
        )
        for p, r in images
    ]
    counts = [(h, len(p.names), len(r.names)) for h, (p, r) in zip(hits, images, strict=True)]
    return {
        "object_recall": mean([h / r for h, _, r in counts]),
        "object_precision": mean([h / p if p else 0.0 for h, p, _ in counts]),
        "object_f1": mean([2 * h / (p + r) for h, p, r in counts]),
    }


def r1_sgg(predictions: Sequence[ImageGraph], references: Sequence[ImageGraph]) -> Values:
    every: list[bool] = []
    of_images: list[float] = []
    every_of: dict[str, list[bool]] = defaultdict(list)
    images_of: dict[str, list[float]] = defaultdict(list)
    for prediction, reference in zip(predictions, references, strict=True):
        found: list[bool] = []
        found_of: dict[str, list[bool]] = defaultdict(list)
        for wanted in relations(reference):
            matched = any(hit(row, wanted) for row in relations(prediction))
            found.append(matched)
            every.append(matched)
            found_of[wanted[0][1]].append(matched)
            every_of[wanted[0][1]].append(matched)
        if found:
            of_images.append(mean(found))
        for predicate, flags in found_of.items():
            images_of[predicate].append(mean(flags))
    return {
        "ng_recall": mean(of_images),
        "ng_recall_pooled": mean(every),
        "ng_mean_recall": mean([mean(values) for values in images_of.values()]),
        "ng_mean_recall_pooled": mean([mean(values) for values in every_of.values()]),
    }


def sgb(
    predictions: Sequence[ImageGraph],
    references: Sequence[ImageGraph],
    vocabulary: Sequence[str],
    num_columns: int,
    zero_shot: set[Names],
) -> Values:
    lists: dict[str, list[float]] = defaultdict(list)
    of_predicate: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for prediction, reference in zip(predictions, references, strict=True):
        if not reference.predicates or not prediction.predicates:
            continue
        matches = {"": _row_matches(prediction, reference)}
        matches["ng_"] = _cell_matches(prediction, reference, vocabulary, num_columns)
        wanted = [names for names, _, _ in relations(reference)]
        unseen = [i for i, names in enumerate(wanted) if names in zero_shot]
        for prefix, of_rows in matches.items():
            for k in CUTS:
                found = [int(i) for i in reduce(np.union1d, of_rows[:k], np.empty(0))]
                lists[f"{prefix}recall@{k}"].append(len(found) / len(wanted))
                if unseen:
                    share = len(set(found) & set(unseen)) / len(unseen)
                    lists[f"{prefix}zero_shot_recall@{k}"].append(share)
                for predicate in set(reference.predicates):
                    hits = sum(wanted[i][1] == predicate for i in found)
                    share = hits / reference.predicates.count(predicate)
                    of_predicate[f"{prefix}mean_recall@{k}"][predicate].append(share)
    values = {
        f"{prefix}{name}@{k}": mean(lists[f"{prefix}{name}@{k}"])
        for prefix in ("", "ng_")
        for name in ("recall", "zero_shot_recall")
        for k in CUTS
    }
    for prefix in ("", "ng_"):
        for k in CUTS:
            name = f"{prefix}mean_recall@{k}"
            lists_of = of_predicate[name].values()
            values[name] = sum(mean(shares) for shares in lists_of) / len(vocabulary)
    return values


def _row_matches(prediction: ImageGraph, reference: ImageGraph) -> list[list[int]]:
    wanted = relations(reference)
    return [
        [i for i, w in enumerate(wanted) if hit(row, w, extra=1.0)] for row in relations(prediction)
    ]


def _cell_matches(
    prediction: ImageGraph, reference: ImageGraph, vocabulary: Sequence[str], num_columns: int
) -> list[list[int]]:
    of_objects = np.array(prediction.scores or [1.0] * len(prediction.names))
    own = prediction.relation_scores or [1.0] * len(prediction.predicates)
    dense = np.zeros((len(own), num_columns))
    for i, (predicate, score) in enumerate(zip(prediction.predicates, own, strict=True)):
        dense[i, vocabulary.index(predicate)] = score
    ends = np.column_stack((prediction.subjects, prediction.objects))
    total = of_objects[ends].prod(1)[:, None] * dense
    rows, columns = np.unravel_index(np.argsort(-total.ravel()), total.shape)
    written, wanted = relations(prediction), relations(reference)
    matches = []
    for row, column in zip(rows[:100].tolist(), columns[:100].tolist(), strict=True):
        predicate = vocabulary[column] if column < len(vocabulary) else ""
        (subject, _, item), a, b = written[row]
        cell = (subject, predicate, item), a, b
        matches.append([i for i, w in enumerate(wanted) if hit(cell, w, extra=1.0)])
    return matches
