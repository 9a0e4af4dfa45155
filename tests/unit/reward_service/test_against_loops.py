"""The batched scorer against `benchmarks/reward_loops.py`, which shares no code with it.

Boxes are drawn as floats, so that the best assignment is unique and no IoU lies on 0.5.
"""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.reward_loops import TERMS, Question, exact, score_alone, score_shared
from reward_service.scoring import RewardScorer, make_scorer
from reward_service.similarity.registry import Similarities
from services.schemas.rewards import Reward, RewardGroup

NAMES = ["man", "horse", "traffic light", "t shirt"]
PREDICATES = ["on", "near", "standing on"]
FREQUENCY = {"on": 0.7, "near": 0.2, "standing on": 0.004}
SOFT_PAIRS = [("man", "horse", 0.3), ("on", "standing on", 0.6), ("on", "near", 0.25)]
ALIKE = {frozenset(pair): value for *pair, value in SOFT_PAIRS}
SPACES = ["relative_1000", "relative_1", "pixels:640x480", "pixels:1036x784"]
IMAGE_SIZE = (640, 480)
LENGTH = {"unit": "characters", "start": 200, "end": 1500}
PRECISION = 1e-9
R1_WEIGHTS = {
    "r1-soft": {"format": 1, "node_category": 2, "node_box": 2, "edge": 5},
    "r1-hard": {"format": 1, "edge_hard": 5},
    "r1-relaxed": {"format": 1, "edge_hard_relaxed": 5},
}

Sim = Callable[[str, str], float]
Graph = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A graph before it is written: boxes are fractions, a triplet's ends are indices."""

    objects: list[tuple[str, list[float]]]
    triplets: list[tuple[int, str, int]]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How large a graph is, and how far its answers are from it."""

    seed: int
    num_objects: int
    num_triplets: int
    num_answers: int
    box_space: str
    closeness: float


SIZES = st.builds(
    Sizes,
    seed=st.integers(0, 2**32 - 1),
    num_objects=st.integers(1, 12),
    num_triplets=st.integers(0, 15),
    num_answers=st.integers(1, 4),
    box_space=st.sampled_from(SPACES),
    closeness=st.sampled_from([0.3, 0.7, 0.9]),
)


def random_box(rng: random.Random) -> list[float]:
    x1, y1 = rng.uniform(0, 0.7), rng.uniform(0, 0.7)
    return [x1, y1, x1 + rng.uniform(0.05, 0.3), y1 + rng.uniform(0.05, 0.3)]


def random_triplets(rng: random.Random, num_objects: int, count: int) -> list[tuple[int, str, int]]:
    every = [(s, p, o) for s in range(num_objects) for p in PREDICATES for o in range(num_objects)]
    return rng.sample(every, min(count, len(every)))


def reference_draft(rng: random.Random, sizes: Sizes) -> Draft:
    return Draft(
        objects=[(rng.choice(NAMES), random_box(rng)) for _ in range(sizes.num_objects)],
        triplets=random_triplets(rng, sizes.num_objects, sizes.num_triplets),
    )


def answer_draft(rng: random.Random, truth: Draft, closeness: float) -> Draft:
    """The truth with objects missing, moved, renamed and invented, and triplets likewise."""
    kept = [i for i in range(len(truth.objects)) if rng.random() < closeness]
    objects = []
    for i in kept:
        name, box = truth.objects[i]
        moved = [v + rng.gauss(0, 0.08 * (1.05 - closeness)) for v in box]
        upright = moved if moved[0] < moved[2] and moved[1] < moved[3] else box
        objects.append((name if rng.random() < closeness else rng.choice(NAMES), upright))
    objects += [(rng.choice(NAMES), random_box(rng)) for _ in range(rng.randint(0, 3))]
    index = {old: new for new, old in enumerate(kept)}
    triplets = {
        (index[s], p if rng.random() < closeness else rng.choice(PREDICATES), index[o])
        for s, p, o in truth.triplets
        if s in index and o in index and rng.random() < closeness
    }
    triplets |= set(random_triplets(rng, len(objects), rng.randint(0, 4)))
    return Draft(objects=objects, triplets=rng.sample(sorted(triplets), len(triplets)))


def spelled(name: str, rng: random.Random) -> str:
    """Another spelling of the same name."""
    joined = name.replace(" ", rng.choice([" ", "_", "-", "  "]))
    return rng.choice([joined, joined.upper(), joined.title()])


def graph_in(draft: Draft, width: float, height: float, rng: random.Random) -> Graph:
    """As JSON, boxes in a space with these sides."""
    ids = [f"{spelled(name, rng)}.{i}" for i, (name, _) in enumerate(draft.objects)]
    objects = [
        {"id": id_, "bbox": [v * side for v, side in zip(box, [width, height] * 2, strict=True)]}
        for id_, (_, box) in zip(ids, draft.objects, strict=True)
    ]
    relationships = [
        {"subject": ids[s], "predicate": spelled(p, rng), "object": ids[o]}
        for s, p, o in draft.triplets
    ]
    return {"objects": objects, "relationships": relationships}


def json_in(draft: Draft, box_space: str, rng: random.Random) -> str:
    sides = {"relative_1000": (1000, 1000), "relative_1": (1, 1)}.get(box_space)
    width, height = sides or map(int, box_space.removeprefix("pixels:").split("x"))
    return json.dumps(graph_in(draft, width, height, rng))


def completion(draft: Draft, box_space: str, rng: random.Random) -> str:
    """With all kinds of tags; now and then no answer at all."""
    body = json_in(draft, box_space, rng)
    around = [
        "<answer>{}</answer>",
        "<think>hm</think> <answer>{}</answer>",
        "{}",
        "I see nothing.",
    ]
    return rng.choices(around, weights=[4, 3, 2, 1])[0].replace("{}", body)


def make_group(sizes: Sizes) -> RewardGroup:
    """A reference with answers of all qualities."""
    rng = random.Random(sizes.seed)
    truth = reference_draft(rng, sizes)
    answers = [answer_draft(rng, truth, sizes.closeness) for _ in range(sizes.num_answers)]
    texts = [completion(answer, sizes.box_space, rng) for answer in [*answers, truth]]
    return group_of(sizes, truth, texts, rng)


def group_of(sizes: Sizes, truth: Draft, texts: list[str], rng: random.Random) -> RewardGroup:
    return RewardGroup.model_validate(
        {
            "group_id": f"seed-{sizes.seed}",
            "image_size": IMAGE_SIZE,
            "box_space": sizes.box_space,
            "reference": graph_in(truth, *IMAGE_SIZE, rng),
            "completions": texts,
            "require_thinking": rng.random() < 0.3,
        }
    )


def question_of(group: RewardGroup, beta: float = 1.0, sim: Sim = exact) -> Question:
    return Question(
        reference=group.reference.model_dump(),
        image_size=group.image_size,
        box_space=group.box_space,
        require_thinking=group.require_thinking,
        sim=sim,
        beta=beta,
        predicate_frequency=FREQUENCY,
        length=(200, 1500),
    )


def soft(left: str, right: str) -> float:
    """What the table of `similarities` says."""
    return 1.0 if left == right else ALIKE.get(frozenset((left, right)), 0.0)


@pytest.fixture(scope="module")
def similarities(tmp_path_factory: pytest.TempPathFactory) -> Similarities:
    folder = tmp_path_factory.mktemp("tables")
    table = {
        "format": "sgg-similarity/1",
        "source": "by hand",
        "names": NAMES + PREDICATES,
        "pairs": SOFT_PAIRS,
    }
    (folder / "soft.json").write_text(json.dumps(table))
    return Similarities(folder)


def scored(
    scorer: RewardScorer, groups: list[RewardGroup]
) -> list[tuple[RewardGroup, str, Reward]]:
    """Group, completion and reward of every completion of a batch."""
    results = scorer.score(groups)
    return [
        (group, text, reward)
        for group, result in zip(groups, results, strict=True)
        for text, reward in zip(group.completions, result.rewards, strict=True)
    ]


@pytest.mark.parametrize(("name", "sim"), [("exact", exact), ("table:soft.json", soft)])
@given(batch=st.lists(SIZES, min_size=1, max_size=4), beta=st.sampled_from([0.5, 1.0, 2.0]))
def test_every_term_equals_the_loops_over_whole_batches(
    name: str, sim: Sim, similarities: Similarities, batch: list[Sizes], beta: float
) -> None:
    every_term = {
        "similarity": name,
        "terms": dict.fromkeys(TERMS, 1.0),
        "beta": beta,
        "predicate_frequency": FREQUENCY,
        "length": LENGTH,
    }
    scorer = make_scorer(every_term, similarities=similarities)
    for group, text, reward in scored(scorer, [make_group(sizes) for sizes in batch]):
        expected = score_shared(text, question_of(group, beta, sim), TERMS)
        assert reward.breakdown == pytest.approx(expected, abs=PRECISION), text
        assert reward.total == pytest.approx(sum(expected.values()), abs=PRECISION)


@pytest.mark.parametrize("rubric", [*R1_WEIGHTS, "balanced"])
@given(batch=st.lists(SIZES, min_size=1, max_size=4))
def test_totals_of_shipped_rubrics_equal_the_loops(rubric: str, batch: list[Sizes]) -> None:
    scorer = make_scorer(rubric)
    weights = R1_WEIGHTS.get(rubric, scorer.rubric.terms)
    for group, text, reward in scored(scorer, [make_group(sizes) for sizes in batch]):
        expected = score_shared(text, question_of(group), weights)
        total = sum(weight * expected[name] for name, weight in weights.items())
        assert reward.total == pytest.approx(total, abs=PRECISION), text


@pytest.mark.parametrize("rubric", [*R1_WEIGHTS, "balanced"])
@given(sizes=SIZES)
def test_the_reference_earns_the_maximum_in_every_box_space(rubric: str, sizes: Sizes) -> None:
    rng = random.Random(sizes.seed)
    truth = reference_draft(rng, replace(sizes, num_triplets=max(1, sizes.num_triplets)))
    text = f"<think>as it is</think><answer>{json_in(truth, sizes.box_space, rng)}</answer>"
    group = group_of(sizes, truth, [text], rng)
    scorer = make_scorer(rubric)
    ((_, _, reward),) = scored(scorer, [group])
    assert reward.total == pytest.approx(scorer.max_total, abs=PRECISION)
    assert all(v == pytest.approx(1, abs=PRECISION) for v in reward.breakdown.values())


@given(SIZES)
def test_the_two_ways_of_running_the_loops_agree(sizes: Sizes) -> None:
    group = make_group(sizes)
    question = question_of(group)
    for text in group.completions:
        assert score_alone(text, question, TERMS) == score_shared(text, question, TERMS)
