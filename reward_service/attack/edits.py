"""What a policy can do to its answer without looking at the image again.

An edit sees the answer and the `Prior`, never the reference: what it gains a model can learn to
gain. A policy is a sequence of edits; what it writes beyond the limits of the answer's grammar is
cut.
"""

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from itertools import islice, permutations, product
from math import prod

from reward_service.attack.honest import Box, jittered
from reward_service.attack.prior import Prior
from scene_graph.graph import Relationship, SceneGraph, SceneObject
from scene_graph.notations.answer import MAX_OBJECTS, MAX_RELATIONSHIPS

Edit = Callable[[SceneGraph, Prior], SceneGraph]
Policy = tuple[str, ...]
"""Names of `EDITS`, in their order"""


def apply_policy(policy: Policy, graph: SceneGraph, prior: Prior) -> SceneGraph:
    """The answer after all edits: boxes in fractions, ids and triplets unique."""
    for name in policy:
        graph = _cut(EDITS[name](graph, prior))
    return graph


def _cut(graph: SceneGraph) -> SceneGraph:
    objects = graph.objects[:MAX_OBJECTS]
    ids = {item.id for item in objects}
    there = (e for e in dict.fromkeys(graph.relationships) if {e.subject, e.object} <= ids)
    return SceneGraph(objects=objects, relationships=tuple(islice(there, MAX_RELATIONSHIPS)))


def _empty(graph: SceneGraph, _: Prior) -> SceneGraph:
    return SceneGraph(objects=(), relationships=())


def _no_triplets(graph: SceneGraph, _: Prior) -> SceneGraph:
    return replace(graph, relationships=())


def _fewer_triplets(graph: SceneGraph, _: Prior, *, share: float) -> SceneGraph:
    count = max(1, round(len(graph.relationships) * share))
    return replace(graph, relationships=graph.relationships[:count])


def _at_most(graph: SceneGraph, _: Prior, *, count: int) -> SceneGraph:
    return replace(graph, relationships=graph.relationships[:count])


def _frequent_triplets(graph: SceneGraph, prior: Prior) -> SceneGraph:
    """Those whose predicate is among the more frequent half."""
    kept = set(prior.predicates[: (len(prior.predicates) + 1) // 2])
    return replace(
        graph, relationships=tuple(e for e in graph.relationships if e.predicate in kept)
    )


def _related_objects(graph: SceneGraph, _: Prior) -> SceneGraph:
    """Those that a triplet names."""
    named = {end for edge in graph.relationships for end in (edge.subject, edge.object)}
    return replace(graph, objects=tuple(o for o in graph.objects if o.id in named))


def _large_objects(graph: SceneGraph, _: Prior, *, share: float) -> SceneGraph:
    by_area = sorted(graph.objects, key=lambda item: -_area(item.bbox))
    return replace(graph, objects=tuple(by_area[: max(1, round(len(by_area) * share))]))


def _objects_again(graph: SceneGraph, _: Prior) -> SceneGraph:
    again = _numbered(((item.category, item.bbox) for item in graph.objects), graph)
    return replace(graph, objects=graph.objects + again)


def _graph_again(graph: SceneGraph, _: Prior) -> SceneGraph:
    again = _numbered(((item.category, item.bbox) for item in graph.objects), graph)
    new_id = {old.id: new.id for old, new in zip(graph.objects, again, strict=True)}
    return SceneGraph(
        objects=graph.objects + again,
        relationships=graph.relationships + _moved(graph.relationships, new_id),
    )


def _more_names(graph: SceneGraph, prior: Prior, *, count: int) -> SceneGraph:
    """Each box again under frequent names."""
    more = product(graph.objects, prior.categories[:count])
    return replace(
        graph,
        objects=graph.objects + _numbered(((name, item.bbox) for item, name in more), graph),
    )


def _frequent_name(graph: SceneGraph, prior: Prior) -> SceneGraph:
    return _renamed(graph, [prior.categories[0]] * len(graph.objects))


def _synonyms(graph: SceneGraph, prior: Prior) -> SceneGraph:
    return _renamed(graph, [prior.synonyms.get(o.category, o.category) for o in graph.objects])


def _synonymous_predicates(graph: SceneGraph, prior: Prior) -> SceneGraph:
    synonyms = prior.synonyms
    return _with_predicates(
        graph, [synonyms.get(e.predicate, e.predicate) for e in graph.relationships]
    )


def _scaled_boxes(graph: SceneGraph, _: Prior, *, factor: float) -> SceneGraph:
    """Boxes grown about their middle, inside the image."""

    def scaled(box: Box) -> Box:
        x1, y1, x2, y2 = box
        x, y, width, height = (x1 + x2) / 2, (y1 + y2) / 2, (x2 - x1) / 2, (y2 - y1) / 2
        width, height = width * factor, height * factor
        return max(0.0, x - width), max(0.0, y - height), min(1.0, x + width), min(1.0, y + height)

    return replace(graph, objects=tuple(replace(o, bbox=scaled(o.bbox)) for o in graph.objects))


def _jittered_boxes(graph: SceneGraph, _: Prior) -> SceneGraph:
    rng = random.Random(repr(graph))
    size = (1.0, 1.0)
    objects = (replace(o, bbox=jittered(o.bbox, 0.1, rng, size=size)) for o in graph.objects)
    return replace(graph, objects=tuple(objects))


def _grid_of_objects(graph: SceneGraph, prior: Prior, *, side: int) -> SceneGraph:
    """More objects: the cells of a grid, with the most frequent name."""
    cells = (
        (x / side, y / side, (x + 1) / side, (y + 1) / side)
        for x, y in product(range(side), repeat=2)
    )
    more = _numbered(((prior.categories[0], cell) for cell in cells), graph)
    return replace(graph, objects=graph.objects + more)


def _flood(graph: SceneGraph, prior: Prior, *, predicates: slice) -> SceneGraph:
    """These predicates between any two objects."""
    pairs = permutations([item.id for item in graph.objects], 2)
    return _and_triplets(graph, product(pairs, prior.predicates[predicates]))


def _hedge_predicates(graph: SceneGraph, prior: Prior, *, predicates: slice) -> SceneGraph:
    """These predicates between any two objects that have a triplet."""
    pairs = dict.fromkeys((edge.subject, edge.object) for edge in graph.relationships)
    return _and_triplets(graph, product(pairs, prior.predicates[predicates]))


def _frequent_predicate(graph: SceneGraph, prior: Prior) -> SceneGraph:
    return _with_predicates(graph, [prior.predicates[0]] * len(graph.relationships))


def _usual_predicates(graph: SceneGraph, prior: Prior) -> SceneGraph:
    """Each predicate becomes the most frequent one between its two categories."""
    category = {item.id: item.category for item in graph.objects}
    usual = prior.predicate_of
    return _with_predicates(
        graph,
        [
            usual.get((category[e.subject], category[e.object]), e.predicate)
            for e in graph.relationships
        ],
    )


def _usual_triplets(graph: SceneGraph, prior: Prior) -> SceneGraph:
    """More triplets: between any two objects the usual predicate of their categories."""
    return _and_triplets(
        graph,
        (
            ((a.id, b.id), prior.predicate_of[a.category, b.category])
            for a, b in permutations(graph.objects, 2)
            if (a.category, b.category) in prior.predicate_of
        ),
    )


def _both_ways(graph: SceneGraph, _: Prior) -> SceneGraph:
    return _and_triplets(
        graph, (((edge.object, edge.subject), edge.predicate) for edge in graph.relationships)
    )


def _all_to_largest(graph: SceneGraph, prior: Prior) -> SceneGraph:
    """The most frequent predicate from every object to the largest one."""
    largest = max(graph.objects, key=lambda item: _area(item.bbox), default=None)
    if largest is None:
        return graph
    ends = ((item.id, largest.id) for item in graph.objects if item.id != largest.id)
    return _and_triplets(graph, product(ends, prior.predicates[:1]))


EDITS: Mapping[str, Edit] = {
    "empty answer": _empty,
    "no triplets": _no_triplets,
    "half of the triplets": partial(_fewer_triplets, share=0.5),
    "one triplet": partial(_at_most, count=1),
    "at most 10 triplets": partial(_at_most, count=10),
    "at most 40 triplets": partial(_at_most, count=40),
    "frequent predicates' triplets only": _frequent_triplets,
    "objects with triplets only": _related_objects,
    "larger half of the objects": partial(_large_objects, share=0.5),
    "largest fifth of the objects": partial(_large_objects, share=0.2),
    "objects again": _objects_again,
    "graph again": _graph_again,
    "boxes again under 1 frequent name": partial(_more_names, count=1),
    "boxes again under 3 frequent names": partial(_more_names, count=3),
    "the most frequent name for all": _frequent_name,
    "synonyms for names": _synonyms,
    "synonyms for predicates": _synonymous_predicates,
    "boxes x 0.8": partial(_scaled_boxes, factor=0.8),
    "boxes x 1.1": partial(_scaled_boxes, factor=1.1),
    "boxes x 1.3": partial(_scaled_boxes, factor=1.3),
    "whole image as each box": partial(_scaled_boxes, factor=1e6),
    "jittered boxes": _jittered_boxes,
    "an object of the whole image": partial(_grid_of_objects, side=1),
    "a grid of 3 x 3 objects": partial(_grid_of_objects, side=3),
    "most frequent predicate on all pairs": partial(_flood, predicates=slice(1)),
    "3 frequent predicates on all pairs": partial(_flood, predicates=slice(3)),
    "every predicate on all pairs": partial(_flood, predicates=slice(None)),
    "rarest predicate on all pairs": partial(_flood, predicates=slice(-1, None)),
    "3 frequent predicates on each pair": partial(_hedge_predicates, predicates=slice(3)),
    "every predicate on each pair": partial(_hedge_predicates, predicates=slice(None)),
    "most frequent predicate for all": _frequent_predicate,
    "usual predicates": _usual_predicates,
    "usual triplets of all pairs": _usual_triplets,
    "triplets both ways": _both_ways,
    "all to the largest object": _all_to_largest,
}
"""By name. "each pair" has a triplet already; "usual" is the most frequent between two categories;
"frequent" is what a guess earns most with under the rubric's similarity."""


def _area(box: Box) -> float:
    return prod(box[i + 2] - box[i] for i in (0, 1))


def _numbered(named: Iterable[tuple[str, Box]], graph: SceneGraph) -> tuple[SceneObject, ...]:
    """New objects with ids that the graph does not have."""
    numbers = [int(item.id.rpartition(".")[2]) for item in graph.objects]
    start = max(numbers, default=0) + 1
    return tuple(
        SceneObject(id=f"{name}.{number}", bbox=box)
        for number, (name, box) in enumerate(named, start)
    )


def _renamed(graph: SceneGraph, names: list[str]) -> SceneGraph:
    new_id = {
        item.id: f"{name}.{number}"
        for number, (item, name) in enumerate(zip(graph.objects, names, strict=True), 1)
    }
    return SceneGraph(
        objects=tuple(replace(item, id=new_id[item.id]) for item in graph.objects),
        relationships=_moved(graph.relationships, new_id),
    )


def _moved(edges: tuple[Relationship, ...], new_id: Mapping[str, str]) -> tuple[Relationship, ...]:
    """The same triplets between other objects."""
    return tuple(
        replace(edge, subject=new_id[edge.subject], object=new_id[edge.object]) for edge in edges
    )


def _with_predicates(graph: SceneGraph, predicates: list[str]) -> SceneGraph:
    pairs = zip(graph.relationships, predicates, strict=True)
    return replace(graph, relationships=tuple(replace(e, predicate=p) for e, p in pairs))


def _and_triplets(graph: SceneGraph, more: Iterable[tuple[tuple[str, str], str]]) -> SceneGraph:
    triplets = (Relationship(subject=s, predicate=p, object=o) for (s, o), p in more)
    room = MAX_RELATIONSHIPS - len(graph.relationships)
    return replace(graph, relationships=graph.relationships + tuple(islice(triplets, max(room, 0))))
