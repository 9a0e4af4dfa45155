"""Whether GRPO takes a vision-language model into the hole of a reward: its data and its picture.

python -m benchmarks.reward_hole_vlm data build/toy-floods
python -m benchmarks.reward_hole_vlm plot runs/hole/r1-soft-? runs/hole/balanced-? \\
    --output docs/reward-hole-vlm.png

docs/rewards.md has the commands between the two. A run's folder is named after its rubric and its
seed, as by `benchmarks.learning`.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count, islice, permutations
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.reward_hole import plot
from scene_data.toy.layouts import PREDICATES, Rng
from scene_data.toy.scenes import SIDE, ToyNoise, render, spoil, toy_scene
from scene_data.writing import graph_row, parquet_writer
from scene_graph.boxes import RELATIVE_1000
from scene_graph.graph import Relationship, SceneGraph
from scene_graph.parsing import parse_completion
from services.run_folder.records import read_rollouts
from services.schemas.groups import TrainGroup

SEED, SPLITS = 11, {"sft": 6000, "train": 1024, "heldout": 64}
NUM_OBJECTS, NAME = 2, "object"
"""Scenes have so many objects, all named so: floods are to be within the tiny model's power, and it
cannot write a doubtful name twice alike."""
NOISE = ToyNoise(predicates=0.6)
FLOOD_SHARE = 0.25
"""A share of the annotations for SFT; no picture shows which."""
HIGHEST = 10
"""Total of `r1-soft` and of `balanced`."""
ENDS = 5
"""Steps at each end of a run that the table has the means of; lines are means over as many."""
PANELS = ("reward, share of the highest", "triplets written for one annotated", "triplet F1")


class Step(NamedTuple):
    """All answers of a step; a triplet is right with three right names and both IoU >= 0.5."""

    reward: float
    written: float
    f1: float
    precision: float


def flood(graph: SceneGraph) -> SceneGraph:
    """The same objects, with every predicate for every ordered pair of them."""
    drawn = tuple(
        Relationship(subject=subject.id, predicate=predicate, object=other.id)
        for subject, other in permutations(graph.objects, 2)
        for predicate in PREDICATES
    )
    return replace(graph, relationships=drawn)


def anonymous(graph: SceneGraph) -> SceneGraph:
    """All objects named `NAME`; their numbers stay."""
    ids = {item.id: f"{NAME}.{item.id.rpartition('.')[2]}" for item in graph.objects}
    return SceneGraph(
        objects=tuple(replace(item, id=ids[item.id]) for item in graph.objects),
        relationships=tuple(
            replace(one, subject=ids[one.subject], object=ids[one.object])
            for one in graph.relationships
        ),
    )


def scenes(split: str) -> Iterator[SceneGraph]:
    """Those of `NUM_OBJECTS` objects; each split has its own seed."""
    seed = SEED + list(SPLITS).index(split)
    drawn = (toy_scene(seed, index, heldout=split == "heldout") for index in count())
    few = (scene for scene in drawn if len(scene.objects) == NUM_OBJECTS)
    return islice(few, SPLITS[split])


def annotated(scene: SceneGraph, rng: Rng) -> SceneGraph:
    """What the start learns to write: vague predicates, or at times a flood."""
    graph = spoil(scene, NOISE, rng)
    return flood(graph) if rng.random() < FLOOD_SHARE else graph


def write_data(folder: Path) -> None:
    """`sft.parquet`, which has floods; `train.parquet` and `heldout.parquet`, which are right."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(SEED)
    for split in SPLITS:
        with parquet_writer(folder / f"{split}.parquet") as write:
            for index, scene in enumerate(scenes(split)):
                graph = annotated(scene, rng) if split == "sft" else scene
                name = f"{split}-{index}"
                row = graph_row(name, render(scene), f"{name}.png", (SIDE, SIDE), anonymous(graph))
                write(row)


def steps_of(run: Path) -> Iterator[Step]:
    """What the answers of each step were."""
    for step in count():
        records = read_rollouts(run, step)
        if not records:
            return
        yield pooled(records)


def pooled(groups: Sequence[TrainGroup]) -> Step:
    """One step; parts of an answer that rewards drop are not written."""
    rewards = [reward for group in groups for reward in group.rewards]
    texts = [one.text for group in groups for one in group.rollout.completions]
    written = sum(len(parse_completion(text, RELATIVE_1000).columns.predicates) for text in texts)
    num_annotated = sum(
        len(group.reference.graph.relationships) * len(group.rewards)
        for group in groups
        if group.reference
    )
    right = sum(reward.matched.relationships for reward in rewards)
    return Step(
        reward=float(np.mean([reward.total for reward in rewards])) / HIGHEST,
        written=written / num_annotated,
        f1=2 * right / (written + num_annotated),
        precision=right / max(written, 1),
    )


def read(runs: Sequence[Path]) -> dict[str, list[np.ndarray]]:
    """The curves of each rubric; prints the first and the last steps of each run."""
    curves: dict[str, list[np.ndarray]] = {}
    print(f"| rubric | seed | {' | '.join((*PANELS, 'triplet precision'))} |")
    print(f"|---|{'--:|' * 5}")
    for run in runs:
        rubric, _, seed = run.name.rpartition("-")
        steps = np.array(list(steps_of(run)))
        ends = zip(steps[:ENDS].mean(0), steps[-ENDS:].mean(0), strict=True)
        print(f"| `{rubric}` | {seed} | {' | '.join(f'{a:.3f} → {b:.3f}' for a, b in ends)} |")
        smooth = [np.convolve(values, np.ones(ENDS) / ENDS, mode="valid") for values in steps.T]
        curves.setdefault(rubric, []).append(np.stack(smooth[: len(PANELS)], axis=1))
    return curves


def main() -> None:
    """`data FOLDER`, or `plot RUN... --output FILE`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("data").add_argument("folder", type=Path)
    drawing = commands.add_parser("plot")
    drawing.add_argument("runs", type=Path, nargs="+")
    drawing.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.command == "data":
        write_data(arguments.folder)
    else:
        plot(read(arguments.runs), PANELS, arguments.output, scale="linear")


if __name__ == "__main__":
    main()
