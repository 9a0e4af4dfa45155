"""Seeded scenes with Visual Genome's statistics, and honest imperfect answers to them.

What is benchmarked and tabled has to look like what a model meets: frequent names are frequent,
boxes are small and large, an answer is near the truth but not on it. Only `random.Random` draws
here, so that a seed gives the same scenes with every version of every library.
"""

import math
import random
from collections.abc import Sequence

from reward_service.attack import honest
from reward_service.attack.honest import Box, Domain, Errors, draw_name, draw_triplets
from scene_data.templates import answer_text
from scene_graph.boxes import BoxSpace
from scene_graph.graph import SceneGraph, SceneObject
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
    ids = [item.id for item in objects]
    return SceneGraph(
        objects=objects, relationships=draw_triplets(ids, num_triplets, PREDICATES, rng)
    )


def imperfect_answer(scene: SceneGraph, errors: Errors, rng: random.Random) -> SceneGraph:
    """An honest answer about a scene, boxes in pixels; well formed, ids of its own."""
    return honest.imperfect_answer(scene, errors, DOMAIN, rng)


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


def _draw_box(rng: random.Random) -> Box:
    """Sides are log-normal with Visual Genome's medians and quartiles; whole pixels."""
    scale = rng.gauss(0, 0.75)
    width = min(1.0, max(0.02, 0.126 * math.exp(scale + rng.gauss(0, 0.75))))
    height = min(1.0, max(0.02, 0.155 * math.exp(scale + rng.gauss(0, 0.75))))
    x1, y1 = rng.uniform(0, 1 - width), rng.uniform(0, 1 - height)
    corners = (x1 * WIDTH, y1 * HEIGHT, (x1 + width) * WIDTH, (y1 + height) * HEIGHT)
    a, b, c, d = map(round, corners)
    return (float(a), float(b), float(c), float(d))


DOMAIN = Domain(
    categories=CATEGORIES,
    predicates=PREDICATES,
    draw_box=_draw_box,
    size=(float(WIDTH), float(HEIGHT)),
)
