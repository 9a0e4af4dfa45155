"""Seeded scenes with Visual Genome's statistics, and honest imperfect answers to them.

What is benchmarked and tabled has to look like what a model meets: frequent names are frequent,
boxes are small and large, an answer is near the truth but not on it. Only `random.Random` draws
here, so that a seed gives the same scenes with every version of every library.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from scene_data.templates import answer_text
from scene_graph.boxes import BoxSpace
from scene_graph.graph import Relationship, SceneGraph, SceneObject
from services.schemas.rewards import (
    ReferenceGraph,
    ReferenceObject,
    ReferenceRelationship,
    RewardGroup,
)

WIDTH, HEIGHT = 800, 600
"""The size of every image, in pixels: Visual Genome's usual one."""
BOX_SPACE = BoxSpace.pixels(WIDTH, HEIGHT)
"""The space of every completion: it writes the reference without rounding."""

# Names with their counts in VG150's training images.
CATEGORIES = {
    "man": 54659, "tree": 49902, "window": 42466, "person": 41278, "shirt": 33920,
    "building": 31805, "woman": 26910, "sign": 23499, "leg": 22335, "head": 21376, "pole": 21205,
    "table": 19064, "hand": 17497, "hair": 17422, "car": 17352, "people": 14415, "light": 14182,
    "leaf": 13984, "door": 13354, "pant": 13147, "shoe": 12419, "ear": 12069, "fence": 12027,
    "chair": 11936, "plate": 11632, "street": 10996, "glass": 10951, "jacket": 10463, "arm": 9951,
    "sidewalk": 9478, "snow": 9437, "wheel": 9236, "tail": 8821, "face": 8419, "hat": 8366,
    "flower": 8228, "boy": 8125, "handle": 7996, "rock": 7922, "bench": 5589, "horse": 5315,
    "bus": 5118, "bike": 4884, "clock": 4877, "dog": 4651, "bird": 4339, "cat": 3720, "bed": 3296,
}  # fmt: skip
PREDICATES = {
    "on": 712409, "has": 277936, "in": 251756, "of": 146339, "wearing": 136099, "near": 96589,
    "with": 66425, "above": 47341, "holding": 42722, "behind": 41356, "under": 22596,
    "sitting on": 18643, "wears": 15457, "standing on": 14185, "in front of": 13715,
    "attached to": 10190, "at": 9903, "hanging from": 9894, "over": 9317, "for": 9145,
    "riding": 8856, "carrying": 5213, "eating": 4688, "walking on": 4613, "playing": 3810,
    "covering": 3806, "laying on": 3739, "along": 3624, "watching": 3490, "and": 3477,
    "between": 3411, "belonging to": 3288, "painted on": 3095, "against": 3092,
    "looking at": 3083, "from": 2945, "parked on": 2721, "to": 2517, "made of": 2380,
    "covered in": 2312, "mounted on": 2253, "says": 2241, "part of": 2065, "across": 1996,
    "flying in": 1973, "using": 1925, "on back of": 1914, "lying on": 1869, "growing on": 1853,
    "walking in": 1740,
}  # fmt: skip

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

SAME_SIZE = Errors(
    keep_objects=0.85,
    keep_triplets=0.75,
    extra_objects=0.15,
    extra_triplets=0.25,
    jitter=0.097,
    wrong_names=0.15,
    wrong_predicates=0.3,
)
"""An answer with about as many objects and triplets as the reference, for timing."""


def make_scene(rng: random.Random, num_objects: int, num_triplets: int) -> SceneGraph:
    """A scene with boxes in pixels of a `WIDTH` x `HEIGHT` image; all triplets are different."""
    objects = tuple(
        SceneObject(id=f"{draw_name(CATEGORIES, rng)}.{index}", bbox=_draw_box(rng))
        for index in range(1, num_objects + 1)
    )
    return SceneGraph(objects=objects, relationships=_draw_triplets(objects, num_triplets, rng))


def imperfect_answer(scene: SceneGraph, errors: Errors, rng: random.Random) -> SceneGraph:
    """An honest answer about a scene, boxes in pixels; well formed, ids of its own."""
    kept, triplets = _keep(scene, errors, rng)
    new_id = {item.id: f"{_name(item, errors, rng)}.{i}" for i, item in enumerate(kept, 1)}
    found = [
        SceneObject(id=new_id[item.id], bbox=jittered(item.bbox, errors.jitter, rng))
        for item in kept
    ]
    invented = [
        SceneObject(id=f"{draw_name(CATEGORIES, rng)}.{len(kept) + i}", bbox=_draw_box(rng))
        for i in range(1, round(len(scene.objects) * errors.extra_objects) + 1)
    ]
    objects = tuple(rng.sample(found + invented, len(found) + len(invented)))
    edges = {
        Relationship(
            subject=new_id[edge.subject],
            predicate=_predicate(edge, errors, rng),
            object=new_id[edge.object],
        ): None
        for edge in triplets
    }
    extra = _draw_triplets(objects, round(len(scene.relationships) * errors.extra_triplets), rng)
    return SceneGraph(objects=objects, relationships=tuple(edges | dict.fromkeys(extra)))


def make_group(group_id: str, scene: SceneGraph, completions: Sequence[str]) -> RewardGroup:
    """The group that scores texts against a scene."""
    return RewardGroup(
        group_id=group_id,
        image_size=(WIDTH, HEIGHT),
        box_space=str(BOX_SPACE),
        reference=ReferenceGraph(
            objects=[ReferenceObject(id=o.id, bbox=o.bbox) for o in scene.objects],
            relationships=[
                ReferenceRelationship(subject=r.subject, predicate=r.predicate, object=r.object)
                for r in scene.relationships
            ],
        ),
        completions=list(completions),
    )


def honest_groups(
    num_groups: int, group_size: int, num_objects: int, num_triplets: int, seed: int = 0
) -> list[RewardGroup]:
    """Groups of one reference size with `SAME_SIZE` answers, for timing."""
    rng = random.Random(f"{seed}/{num_objects}/{num_triplets}")
    groups = []
    for index in range(num_groups):
        scene = make_scene(rng, num_objects, num_triplets)
        answers = [imperfect_answer(scene, SAME_SIZE, rng) for _ in range(group_size)]
        groups.append(make_group(f"g{index}", scene, [write(answer) for answer in answers]))
    return groups


def write(graph: SceneGraph) -> str:
    """A graph with boxes in pixels as a model writes it."""
    return answer_text(graph, BOX_SPACE, width=WIDTH, height=HEIGHT)


def draw_name(counts: dict[str, int], rng: random.Random) -> str:
    """A name with the chance of its count."""
    return rng.choices(list(counts), weights=list(counts.values()))[0]


def jittered(box: Box, share: float, rng: random.Random) -> Box:
    """A box with each edge moved, inside the image and never inverted."""
    x1, y1, x2, y2 = box
    width, height = x2 - x1, y2 - y1

    def moved(side: float) -> float:
        return side * max(-0.3, min(0.3, rng.gauss(0, share)))

    return (
        max(0.0, x1 + moved(width)),
        max(0.0, y1 + moved(height)),
        min(float(WIDTH), x2 + moved(width)),
        min(float(HEIGHT), y2 + moved(height)),
    )


def _draw_box(rng: random.Random) -> Box:
    """Sides are log-normal with Visual Genome's medians and quartiles; whole pixels."""
    scale = rng.gauss(0, 0.75)
    width = min(1.0, max(0.02, 0.126 * math.exp(scale + rng.gauss(0, 0.75))))
    height = min(1.0, max(0.02, 0.155 * math.exp(scale + rng.gauss(0, 0.75))))
    x1, y1 = rng.uniform(0, 1 - width), rng.uniform(0, 1 - height)
    corners = (x1 * WIDTH, y1 * HEIGHT, (x1 + width) * WIDTH, (y1 + height) * HEIGHT)
    a, b, c, d = map(round, corners)
    return (float(a), float(b), float(c), float(d))


def _draw_triplets(
    objects: Sequence[SceneObject], count: int, rng: random.Random
) -> tuple[Relationship, ...]:
    """Different triplets between different objects; none where there are fewer than two."""
    triplets: dict[Relationship, None] = {}
    while len(triplets) < count and len(objects) > 1:
        subject, target = rng.sample(range(len(objects)), 2)
        predicate = draw_name(PREDICATES, rng)
        edge = Relationship(
            subject=objects[subject].id, predicate=predicate, object=objects[target].id
        )
        triplets[edge] = None
    return tuple(triplets)


def _keep(
    scene: SceneGraph, errors: Errors, rng: random.Random
) -> tuple[list[SceneObject], list[Relationship]]:
    """What is found: triplets with their ends first, then objects up to their share."""
    num_objects = max(1, round(len(scene.objects) * errors.keep_objects))
    num_triplets = round(len(scene.relationships) * errors.keep_triplets)
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


def _name(item: SceneObject, errors: Errors, rng: random.Random) -> str:
    if rng.random() >= errors.wrong_names:
        return item.category
    return draw_name({k: v for k, v in CATEGORIES.items() if k != item.category}, rng)


def _predicate(edge: Relationship, errors: Errors, rng: random.Random) -> str:
    if rng.random() >= errors.wrong_predicates:
        return edge.predicate
    return draw_name({k: v for k, v in PREDICATES.items() if k != edge.predicate}, rng)
