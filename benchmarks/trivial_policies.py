"""Whether a rubric can be gamed: rewards of answers that ignore the image, as a Markdown table.

python benchmarks/trivial_policies.py                          # print the table
python benchmarks/trivial_policies.py --write docs/rewards.md  # replace the one in the docs
python benchmarks/trivial_policies.py --data graphs.json       # over a dataset's graphs instead
"""

import argparse
import json
import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice, permutations, product
from pathlib import Path
from statistics import fmean

from benchmarks.honest_graphs import (
    BOX_SPACE,
    CATEGORIES,
    HEIGHT,
    PREDICATES,
    WIDTH,
    imperfect_answer,
    make_group,
    make_scene,
    write,
)
from reward_service.attack.honest import IMPERFECT, Box
from reward_service.scoring import make_scorer
from scene_data.reading.rows import read_graph
from scene_data.templates import prompt_messages
from scene_graph.graph import Relationship, SceneGraph, SceneObject
from services.schemas.common import TextPart

NUM_SCENES = 64
RUBRICS = ("r1-soft", "r1-hard", "r1-relaxed", "balanced")
MAX_TRIPLETS = 2000
"""More relationships in a completion are `too_large`."""
REFERENCE = "the reference itself"
HONEST = "an honest imperfect graph"
START, END = "<!-- trivial-policies -->", "<!-- /trivial-policies -->"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What a policy earns, as means over the scenes.

    Example: `Row(policy="empty graph", percent={"balanced": 0.0}, terms={"format": 0.0})`
    """

    policy: str
    percent: dict[str, float]
    """Rubric to total, in percent of its maximum."""
    terms: dict[str, float]
    """Breakdown under `balanced`."""


def make_scenes(num: int = NUM_SCENES) -> list[SceneGraph]:
    """Seeded scenes of 4 to 16 objects with 3 to 12 triplets."""
    rng = random.Random(0)
    return [make_scene(rng, rng.randint(4, 16), rng.randint(3, 12)) for _ in range(num)]


def read_scenes(path: Path) -> list[SceneGraph]:
    """The graphs of a JSON dataset (docs/data.md), images left aside.

    Boxes are stretched to this module's image size, since the sizes are the images' own.
    """
    graphs = [read_graph(row)[0] for row in json.loads(path.read_text())]
    return [_stretched(graph) for graph in graphs if graph.relationships]


def measure(scenes: Sequence[SceneGraph]) -> list[Row]:
    """Every policy on every scene, scored by the reward service's own scorer."""
    texts = [[policy(scene) for policy in POLICIES.values()] for scene in scenes]
    groups = [
        make_group(f"scene-{index}", scene, completions)
        for index, (scene, completions) in enumerate(zip(scenes, texts, strict=True))
    ]
    percent: dict[str, list[float]] = {}
    terms: list[dict[str, float]] = []
    for rubric in RUBRICS:
        scorer = make_scorer(rubric)
        # [policies] of [scenes]
        rewards = list(zip(*(group.rewards for group in scorer.score(groups)), strict=True))
        percent[rubric] = [
            100 * fmean(reward.total for reward in of_policy) / scorer.max_total
            for of_policy in rewards
        ]
        terms = [
            {name: fmean(r.breakdown[name] for r in of_policy) for name in scorer.rubric.terms}
            for of_policy in rewards
        ]
    return [
        Row(policy=name, percent={r: percent[r][i] for r in RUBRICS}, terms=terms[i])
        for i, name in enumerate(POLICIES)
    ]


def markdown(rows: Sequence[Row]) -> str:
    """The table: percent of each rubric's maximum, then the terms of `balanced`."""
    columns = ["policy", *(f"`{name}`" for name in [*RUBRICS, *rows[0].terms])]
    lines = [f"| {' | '.join(columns)} |", "|---" + "|--:" * (len(columns) - 1) + "|"]
    for row in rows:
        totals = [f"{value:.1f} %" for value in row.percent.values()]
        terms = [f"{value:.2f}" for value in row.terms.values()]
        lines.append(f"| {' | '.join([row.policy, *totals, *terms])} |")
    return "\n".join(lines)


def replace_table(text: str, table: str) -> str:
    """A document with `table` between the two markers.

    Raises:
        ValueError: The markers are not there.
    """
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"put the lines {START} and {END} where the table belongs")
    return f"{before}{start}\n{table}\n{end}{after}"


def reference_itself(scene: SceneGraph) -> str:
    """The best answer there is."""
    return write(scene)


def honest(scene: SceneGraph) -> str:
    """What a trained model might write."""
    return write(_honest_graph(scene))


def empty_graph(scene: SceneGraph) -> str:
    """Well formed, and nothing in it."""
    return write(SceneGraph(objects=(), relationships=()))


def full_image_box(scene: SceneGraph) -> str:
    """One object of the most frequent category, everywhere."""
    whole = SceneObject(id=f"{next(iter(CATEGORIES))}.1", bbox=(0, 0, WIDTH, HEIGHT))
    return write(SceneGraph(objects=(whole,), relationships=()))


def prompt_example(scene: SceneGraph) -> str:
    """The example of the prompt, with numbers in place of x1, y1, x2, y2."""
    (message,) = prompt_messages("open", BOX_SPACE)
    text = "".join(part.text for part in message.content if isinstance(part, TextPart))
    example = re.search(r"<answer>\{.*\}</answer>", text, re.DOTALL)
    assert example, "the prompt shows no example"
    return example[0].replace("x1,y1,x2,y2", "200,150,600,450")


def random_boxes(scene: SceneGraph) -> str:
    """As many objects and triplets as the reference has, drawn without looking."""
    rng = _rng(scene)
    return write(make_scene(rng, len(scene.objects), len(scene.relationships)))


def grid_of_boxes(scene: SceneGraph) -> str:
    """Cells of 1 x 1, 2 x 2 and 3 x 3 grids, each under three names, with `on` between any two."""
    cells: list[Box] = [
        (WIDTH * x / n, HEIGHT * y / n, WIDTH * (x + 1) / n, HEIGHT * (y + 1) / n)
        for n in (1, 2, 3)
        for x, y in product(range(n), repeat=2)
    ]
    objects = tuple(
        SceneObject(id=f"{name}.{index}", bbox=box)
        for index, (box, name) in enumerate(product(cells, list(CATEGORIES)[:3]))
    )
    return write(SceneGraph(objects=objects, relationships=_all_triplets(objects, 1)))


def honest_objects_only(scene: SceneGraph) -> str:
    """The honest graph's objects without a triplet."""
    return write(SceneGraph(objects=_honest_graph(scene).objects, relationships=()))


def honest_all_triplets(scene: SceneGraph) -> str:
    """The honest graph's objects, with each predicate between any two of them."""
    objects = _honest_graph(scene).objects
    return write(SceneGraph(objects=objects, relationships=_all_triplets(objects)))


def honest_names_hedged(scene: SceneGraph) -> str:
    """The honest graph with each box again under three frequent names."""
    graph = _honest_graph(scene)
    more = product(graph.objects, list(CATEGORIES)[:3])
    again = [
        SceneObject(id=f"{name}.{1000 + i}", bbox=item.bbox) for i, (item, name) in enumerate(more)
    ]
    return write(SceneGraph(objects=(*graph.objects, *again), relationships=graph.relationships))


def reference_objects_only(scene: SceneGraph) -> str:
    """Perfect objects without a triplet."""
    return write(SceneGraph(objects=scene.objects, relationships=()))


def reference_and_junk(scene: SceneGraph) -> str:
    """The reference with 60 more boxes, and each predicate between any two of its objects."""
    rng = _rng(scene)
    junk = make_scene(rng, 60, 0).objects
    renamed = [SceneObject(id=f"{o.category}.{1000 + i}", bbox=o.bbox) for i, o in enumerate(junk)]
    triplets = dict.fromkeys((*scene.relationships, *_all_triplets(scene.objects)))
    return write(
        SceneGraph(
            objects=(*scene.objects, *renamed),
            relationships=tuple(islice(triplets, MAX_TRIPLETS)),
        )
    )


POLICIES: dict[str, Callable[[SceneGraph], str]] = {
    REFERENCE: reference_itself,
    HONEST: honest,
    "empty graph": empty_graph,
    "one full-image box of the most frequent category": full_image_box,
    "copy of the prompt's example": prompt_example,
    "random boxes, names and triplets": random_boxes,
    "grid of boxes x frequent names, `on` between all": grid_of_boxes,
    "honest objects, no triplets": honest_objects_only,
    "honest objects, all pairs x all predicates": honest_all_triplets,
    "honest graph, each box under three more names": honest_names_hedged,
    "reference's objects, no triplets": reference_objects_only,
    "reference, 60 junk boxes, all pairs x all predicates": reference_and_junk,
}
"""Name in the table to what it writes about a scene. Only the last two know the reference."""


def _rng(scene: SceneGraph) -> random.Random:
    return random.Random(write(scene))


def _honest_graph(scene: SceneGraph) -> SceneGraph:
    return imperfect_answer(scene, IMPERFECT, _rng(scene))


def _all_triplets(
    objects: Sequence[SceneObject], num_predicates: int = len(PREDICATES)
) -> tuple[Relationship, ...]:
    """Frequent predicates first, up to the limit."""
    every: Iterable[Relationship] = (
        Relationship(subject=subject.id, predicate=predicate, object=target.id)
        for predicate in list(PREDICATES)[:num_predicates]
        for subject, target in permutations(objects, 2)
    )
    return tuple(islice(every, MAX_TRIPLETS))


def _stretched(graph: SceneGraph) -> SceneGraph:
    """A dataset's graph in this module's image size and whole pixels."""
    width = max(item.bbox[2] for item in graph.objects)
    height = max(item.bbox[3] for item in graph.objects)
    objects = []
    for item in graph.objects:
        x1, y1 = round(item.bbox[0] / width * WIDTH), round(item.bbox[1] / height * HEIGHT)
        x2, y2 = round(item.bbox[2] / width * WIDTH), round(item.bbox[3] / height * HEIGHT)
        objects.append(SceneObject(id=item.id, bbox=(x1, y1, max(x2, x1 + 1), max(y2, y1 + 1))))
    return SceneGraph(objects=tuple(objects), relationships=graph.relationships)


def main() -> None:
    """Print the table, or put it into a document."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="JSON dataset in place of seeded scenes")
    parser.add_argument("--write", type=Path, help="Markdown file with the two markers")
    arguments = parser.parse_args()
    table = markdown(measure(read_scenes(arguments.data) if arguments.data else make_scenes()))
    if arguments.write:
        text = arguments.write.read_text(encoding="utf-8")
        arguments.write.write_text(replace_table(text, table), encoding="utf-8")
    else:
        print(table)


if __name__ == "__main__":
    main()
