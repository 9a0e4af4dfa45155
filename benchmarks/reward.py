"""How fast scoring is on one core: against plain loops, as graphs grow, and on hostile text.

python benchmarks/reward.py
"""

import math
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import permutations
from pathlib import Path

# One core, before numpy starts a thread for each core that it sees.
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

from benchmarks.honest_graphs import (  # noqa: E402
    DOMAIN,
    SAME_SIZE,
    honest_groups,
    imperfect_answer,
    make_group,
    make_scene,
    write,
)
from benchmarks.hostile_completions import (  # noqa: E402
    NUM_OBJECTS,
    NUM_TRIPLETS,
    hostile_completions,
)
from benchmarks.reward_loops import Question, score_alone, score_shared  # noqa: E402
from reward_service.attack.honest import jittered  # noqa: E402
from reward_service.scoring import RewardScorer, make_scorer  # noqa: E402
from reward_service.service.workers import settle  # noqa: E402
from scene_graph.graph import Relationship, SceneGraph, SceneObject  # noqa: E402
from services.schemas.rewards import RewardGroup  # noqa: E402

SIZES = ((7, 5), (30, 20), (60, 60))
GROUP_SIZE = 8
NUM_GROUPS = 64
LOOP_GROUPS = {7: 8, 30: 2, 60: 1}
"""Groups that the loops score in a round, by objects: enough for half a second at most."""
ROUNDS = 15
GROWTH = (10, 30, 100, 300, 500)
"""Objects, and as many triplets."""

AIMS = """\
Aims: 20 times the loops at 7 x 5, 50 times at 60 x 60, 5,000 graphs/s at 7 x 5. They are meant
against `alone`: each term reads the text and matches by itself, as published reward functions do.
`shared` reads and matches once for all terms."""

Loops = Callable[[str, Question, Sequence[str]], dict[str, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Graphs a second of the three ways.

    Ratios are medians over rounds, each of which times the three ways one after another: the
    processor's speed changes between rounds by more than what is measured.
    """

    ours: float
    alone: float
    shared: float
    ratio_alone: float
    ratio_shared: float


def main() -> None:
    """Print the three tables."""
    settle()  # memory as in the service, for both sides
    print(f"{cpu_name()}, one core and one thread; CPU time, medians of {ROUNDS} rounds\n")
    print("\n".join([*throughput_table(), "", AIMS, ""]))
    print("\n".join([*growth_table(), ""]))
    print("\n".join(hostile_table()))


def throughput_table() -> Iterator[str]:
    """Ours against the loops, alternating in one process."""
    yield f"Honest completions, {NUM_GROUPS} groups of {GROUP_SIZE}, from text to `ScoredGroup`:\n"
    yield "| size | rubric | graphs/s | loops, alone | ratio | loops, shared | ratio | difference |"
    yield "|---|---|--:|--:|--:|--:|--:|--:|"
    for num_objects, num_triplets in SIZES:
        groups = honest_groups(NUM_GROUPS, GROUP_SIZE, num_objects, num_triplets)
        for rubric in ("r1-soft", "balanced"):
            scorer, few = make_scorer(rubric), groups[: LOOP_GROUPS[num_objects]]
            speed = _speed(scorer, groups, few)
            yield (
                f"| {num_objects} x {num_triplets} | `{rubric}` | {speed.ours:,.0f} "
                f"| {speed.alone:,.0f} | {speed.ratio_alone:.1f} "
                f"| {speed.shared:,.0f} | {speed.ratio_shared:.1f} "
                f"| {_difference(scorer, few):.0e} |"
            )


def growth_table() -> Iterator[str]:
    """Milliseconds as reference and completion grow together."""
    yield "N objects and N triplets on both sides, groups of 8, `balanced`:\n"
    yield "| N | ms per completion | grows as |"
    yield "|--:|--:|--:|"
    scorer, before = make_scorer("balanced"), (0, 0.0)
    for n in GROWTH:
        groups = honest_groups(max(1, 320 // n), GROUP_SIZE, n, n)
        ms = 1000 * _seconds(partial(scorer.score, groups)) / _num_graphs(groups)
        power = math.log(ms / before[1]) / math.log(n / before[0]) if before[0] else math.nan
        yield f"| {n} | {ms:.3f} | {'' if math.isnan(power) else f'N^{power:.1f}'} |"
        before = n, ms


def hostile_table() -> Iterator[str]:
    """Hostile text beside an honest completion of the size limit, on the same reference."""
    rng = random.Random(0)
    scene = make_scene(rng, NUM_OBJECTS, NUM_TRIPLETS)
    scorer = make_scorer("balanced")
    honest = imperfect_answer(scene, SAME_SIZE, rng)
    unit = _seconds_of(scorer, make_group("honest", scene, _four(write(honest))))
    yield (
        f"Hostile completions against a reference of {NUM_OBJECTS} objects and {NUM_TRIPLETS} "
        f"triplets, `balanced`. 1 is an honest\ncompletion of that size ({len(honest.objects)} x "
        f"{len(honest.relationships)}, {len(write(honest)) // 1024} KiB): {1000 * unit:.1f} ms.\n"
    )
    yield "| completion | status | cost |"
    yield "|---|---|--:|"
    for name, text in hostile_completions().items():
        group = make_group("hostile", scene, _four(text))
        (result,) = scorer.score([group])
        cost = _seconds_of(scorer, group) / unit
        yield f"| {name} | `{result.rewards[0].status}` | {cost:.2f} |"
    crowd = make_group("crowd", _crowd(rng), _four(write(_crowd(rng))))
    yield (
        "\nNot a model's doing, but the most that a request of this size can cost: a reference of "
        f"{NUM_OBJECTS} boxes of\none name, nearly equal, with {NUM_TRIPLETS} triplets of one "
        f"predicate, and such an answer: {_seconds_of(scorer, crowd) / unit:.2f}."
    )


def cpu_name() -> str:
    """The processor, as the kernel names it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((s.partition(":")[2].strip() for s in lines if s.startswith("model name")), "CPU")


def question_of(group: RewardGroup) -> Question:
    """A group as the loops take it."""
    return Question(
        reference=group.reference.model_dump(),
        image_size=group.image_size,
        box_space=group.box_space,
    )


def _speed(scorer: RewardScorer, groups: list[RewardGroup], few: list[RewardGroup]) -> Speed:
    """Medians of rounds that alternate, so that a slow minute of the machine is everyone's."""
    questions = [question_of(group) for group in few]
    names = list(scorer.rubric.terms)
    seconds: dict[str, list[float]] = {"ours": [], "alone": [], "shared": []}
    for _ in range(ROUNDS):
        seconds["ours"].append(_timed(lambda: scorer.score(groups)))
        seconds["alone"].append(_timed(lambda: _run_loops(score_alone, few, questions, names)))
        seconds["shared"].append(_timed(lambda: _run_loops(score_shared, few, questions, names)))
    rates = {
        way: [num / s for s in times]
        for (way, times), num in zip(
            seconds.items(), (_num_graphs(groups), _num_graphs(few), _num_graphs(few)), strict=True
        )
    }
    ratio = {
        way: statistics.median(a / b for a, b in zip(rates["ours"], rates[way], strict=True))
        for way in ("alone", "shared")
    }
    median = {way: statistics.median(found) for way, found in rates.items()}
    return Speed(**median, ratio_alone=ratio["alone"], ratio_shared=ratio["shared"])


def _run_loops(
    loops: Loops, groups: list[RewardGroup], questions: list[Question], names: list[str]
) -> None:
    for group, question in zip(groups, questions, strict=True):
        for text in group.completions:
            loops(text, question, names)


def _difference(scorer: RewardScorer, groups: list[RewardGroup]) -> float:
    """Largest difference of any term of any completion."""
    names = list(scorer.rubric.terms)
    worst = 0.0
    for group, result in zip(groups, scorer.score(groups), strict=True):
        question = question_of(group)
        for text, reward in zip(group.completions, result.rewards, strict=True):
            expected = score_alone(text, question, names)
            worst = max(worst, *(abs(reward.breakdown[n] - expected[n]) for n in names))
    return worst


def _crowd(rng: random.Random) -> SceneGraph:
    """Where every object is like every other, and every triplet like every other."""
    objects = tuple(
        SceneObject(id=f"man.{i}", bbox=jittered((200, 150, 600, 450), 0.02, rng, size=DOMAIN.size))
        for i in range(NUM_OBJECTS)
    )
    ends = rng.sample(list(permutations(objects, 2)), NUM_TRIPLETS)
    return SceneGraph(
        objects=objects,
        relationships=tuple(
            Relationship(subject=s.id, predicate="on", object=o.id) for s, o in ends
        ),
    )


def _four(text: str) -> list[str]:
    """Four completions that are not the same string."""
    return [text + " " * i for i in range(4)]


def _seconds_of(scorer: RewardScorer, group: RewardGroup) -> float:
    """Seconds of one completion, with its share of the group's reference."""
    return _seconds(lambda: scorer.score([group])) / len(group.completions)


def _seconds(work: Callable[[], object]) -> float:
    """Median time of some work."""
    return statistics.median(_timed(work) for _ in range(ROUNDS))


def _timed(work: Callable[[], object]) -> float:
    """CPU seconds of the process: what else runs on the core does not count."""
    start = time.process_time()
    work()
    return time.process_time() - start


def _num_graphs(groups: Sequence[RewardGroup]) -> int:
    return sum(len(group.completions) for group in groups)


if __name__ == "__main__":
    main()
