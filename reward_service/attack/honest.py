"""Honest imperfect answers: a reference with seeded errors.

Only `random.Random` draws here, so that a seed gives the same answers with every version of every
library.
"""

import random
from collections.abc import Callable, Mapping, Sized
from dataclasses import dataclass

from scene_graph.graph import Relationship, SceneGraph, SceneObject

Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Errors:
    """How an honest answer differs from the truth. Shares are of the reference's counts.

    Example: `Errors(keep_objects=0.7, keep_triplets=0.6, extra_objects=0.15, extra_triplets=0.15,
    jitter=0.1, wrong_names=0.15, wrong_predicates=0.3)`
    """

    keep_objects: float
    """Share of the reference's objects that are found."""
    keep_triplets: float
    """Share of its triplets that are found, where their ends are."""
    extra_objects: float
    """Invented ones, as a share."""
    extra_triplets: float
    jitter: float
    """Standard deviation of each box edge, as a share of the box's side."""
    wrong_names: float
    """Share of the found objects that have another name."""
    wrong_predicates: float

    def halved(self) -> "Errors":
        """Every error half as often: what an honest improvement is."""
        return Errors(
            keep_objects=(1 + self.keep_objects) / 2,
            keep_triplets=(1 + self.keep_triplets) / 2,
            extra_objects=self.extra_objects / 2,
            extra_triplets=self.extra_triplets / 2,
            jitter=self.jitter / 2,
            wrong_names=self.wrong_names / 2,
            wrong_predicates=self.wrong_predicates / 2,
        )


IMPERFECT = Errors(
    keep_objects=0.7,
    keep_triplets=0.6,
    extra_objects=0.15,
    extra_triplets=0.15,
    jitter=0.097,
    wrong_names=0.15,
    wrong_predicates=0.3,
)
"""A trained model's answer: mean IoU of found objects about 0.75."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Domain:
    """What graphs are made of, by which errors are drawn.

    Example: `Domain(categories={"man": 3, "hat": 1}, predicates={"on": 2}, draw_box=draw)`
    """

    categories: Mapping[str, int]
    """Name to how often it occurs"""
    predicates: Mapping[str, int]
    draw_box: Callable[[random.Random], Box]
    """A box that an object might have"""
    size: tuple[float, float] = (1.0, 1.0)
    """Width and height of the image, in the boxes' unit"""


def imperfect_answer(
    scene: SceneGraph, errors: Errors, domain: Domain, rng: random.Random
) -> SceneGraph:
    """An honest answer about a scene; well formed, ids of its own, found triplets first."""
    kept, triplets = _keep(scene, errors, rng)
    new_id = {
        item.id: f"{_other(item.category, domain.categories, errors.wrong_names, rng)}.{i}"
        for i, item in enumerate(kept, 1)
    }
    found = [
        SceneObject(
            id=new_id[item.id], bbox=jittered(item.bbox, errors.jitter, rng, size=domain.size)
        )
        for item in kept
    ]
    invented = [
        SceneObject(
            id=f"{draw_name(domain.categories, rng)}.{len(kept) + i}", bbox=domain.draw_box(rng)
        )
        for i in range(1, _count(scene.objects, errors.extra_objects, rng) + 1)
    ]
    objects = tuple(rng.sample(found + invented, len(found) + len(invented)))
    edges = {
        Relationship(
            subject=new_id[edge.subject],
            predicate=_other(edge.predicate, domain.predicates, errors.wrong_predicates, rng),
            object=new_id[edge.object],
        ): None
        for edge in triplets
    }
    num_extra = _count(scene.relationships, errors.extra_triplets, rng)
    extra = draw_triplets([item.id for item in objects], num_extra, domain.predicates, rng)
    return SceneGraph(objects=objects, relationships=tuple(edges | dict.fromkeys(extra)))


def draw_name(counts: Mapping[str, int], rng: random.Random) -> str:
    """A name with the chance of its count."""
    return rng.choices(list(counts), weights=list(counts.values()))[0]


def draw_triplets(
    ids: list[str], count: int, predicates: Mapping[str, int], rng: random.Random
) -> tuple[Relationship, ...]:
    """Different triplets between different objects; none where there are fewer than two."""
    possible = len(ids) * (len(ids) - 1) * len(predicates)
    triplets: dict[Relationship, None] = {}
    while len(triplets) < min(count, possible):
        subject, target = rng.sample(range(len(ids)), 2)
        predicate = draw_name(predicates, rng)
        edge = Relationship(subject=ids[subject], predicate=predicate, object=ids[target])
        triplets[edge] = None
    return tuple(triplets)


def jittered(box: Box, share: float, rng: random.Random, *, size: tuple[float, float]) -> Box:
    """A box with each edge moved, inside the image and never inverted.

    Args:
        box: Inside the image.
        share: Standard deviation, as a share of the box's side.
        rng: Draws.
        size: Width and height of the image, in the box's unit.
    """
    x1, y1, x2, y2 = box
    width, height = x2 - x1, y2 - y1

    def moved(side: float) -> float:
        return side * max(-0.3, min(0.3, rng.gauss(0, share)))

    return (
        max(0.0, x1 + moved(width)),
        max(0.0, y1 + moved(height)),
        min(size[0], x2 + moved(width)),
        min(size[1], y2 + moved(height)),
    )


def _keep(
    scene: SceneGraph, errors: Errors, rng: random.Random
) -> tuple[list[SceneObject], list[Relationship]]:
    """What is found: triplets with their ends first, then objects up to their share."""
    num_objects = max(1, _count(scene.objects, errors.keep_objects, rng))
    num_triplets = _count(scene.relationships, errors.keep_triplets, rng)
    ids: set[str] = set()
    triplets: list[Relationship] = []
    for edge in rng.sample(scene.relationships, len(scene.relationships)):
        with_ends = ids | {edge.subject, edge.object}
        if len(triplets) < num_triplets and len(with_ends) <= num_objects:
            ids = with_ends
            triplets.append(edge)
    rest = [item.id for item in scene.objects if item.id not in ids]
    ids |= set(rng.sample(rest, min(len(rest), num_objects - len(ids))))
    return [item for item in scene.objects if item.id in ids], triplets


def _count(items: Sized, share: float, rng: random.Random) -> int:
    """A share of the items, rounded up or down by chance: 70 % of two are 1.4 on average."""
    return int(len(items) * share + rng.random())


def _other(name: str, counts: Mapping[str, int], chance: float, rng: random.Random) -> str:
    """The name, or with this chance another one."""
    others = {other: count for other, count in counts.items() if other != name}
    return draw_name(others, rng) if rng.random() < chance and others else name
