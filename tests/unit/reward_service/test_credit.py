"""What elements add is what scoring each graph along the way gives, and nothing looks ahead."""

import json
import random
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from reward_service.credit.assignments import Held, over_prefixes
from reward_service.scoring import RewardScorer, make_scorer
from reward_service.terms import TERMS
from scene_graph.graph import Relationship, SceneGraph, SceneObject
from scene_graph.notations.answer import NotationName
from scene_graph.notations.compact import write as write_compact
from scene_graph.notations.elements import read_elements
from scene_graph.similarity import TableSimilarity
from services.schemas.rewards import Credit, Reward, RewardGroup, Task
from tests.unit.reward_service.test_scoring_properties import EVERY_TERM, Graph

ABOUT_GRAPHS = [name for name, term in TERMS.items() if term.by_element]
SCORERS: dict[Task, RewardScorer] = {
    task: make_scorer(EVERY_TERM, task) for task in ("sgg", "det", "cls")
}
TASKS = st.sampled_from(list(SCORERS))
ALIKE = TableSimilarity(["hat", "man", "near", "on"], {("hat", "man"): 0.6, ("near", "on"): 0.3})
NOTATIONS = st.sampled_from(["json", "compact"])


def rewards(
    scorer: RewardScorer,
    reference: Graph,
    texts: list[str],
    notation: NotationName = "json",
    **fields: Any,
) -> list[Reward]:
    group = RewardGroup.model_validate(
        {
            "group_id": "g",
            "image_size": (100, 80),
            "box_space": "pixels:100x80",
            "reference": reference,
            "completions": texts,
            "notation": notation,
            **fields,
        }
    )
    return scorer.score([group], credit=True)[0].rewards


def written(graph: Graph, notation: NotationName, task: Task) -> str:
    if notation == "json":
        return json.dumps(graph if task != "cls" else {"relationships": graph["relationships"]})
    objects = tuple(SceneObject(id=o["id"], bbox=tuple(o["bbox"])) for o in graph["objects"])
    edges = tuple(Relationship(**edge) for edge in graph["relationships"])
    return write_compact(SceneGraph(objects=objects, relationships=edges), task)


def of_graph(scorer: RewardScorer, reward: Reward) -> float:
    """The part of a total that is about the graph."""
    terms = set(ABOUT_GRAPHS) & set(scorer.weights)
    return sum(scorer.weights[name] * reward.breakdown[name] for name in terms)


def credit(reward: Reward) -> Credit:
    assert reward.credit is not None
    return reward.credit


def random_graph(rng: random.Random, most_objects: int, most_edges: int) -> Graph:
    """No two boxes are equal: of assignments of equal cost scoring may take any."""
    names = [
        f"{rng.choice(['man', 'hat', 'dog'])}.{i}" for i in range(rng.randint(1, most_objects))
    ]
    objects = []
    for name in names:
        x, y = rng.uniform(0, 40), rng.uniform(0, 40)
        box = [x, y, x + rng.uniform(20, 50), y + rng.uniform(10, 35)]
        objects.append({"id": name, "bbox": box})
    ends = [rng.choices(names, k=2) for _ in range(rng.randint(0, most_edges))]
    edges = {(s, rng.choice(["on", "near", "under"]), o): None for s, o in ends}
    keys = ("subject", "predicate", "object")
    return {
        "objects": objects,
        "relationships": [dict(zip(keys, edge, strict=True)) for edge in edges],
    }


def along_the_way(graph: Graph, task: Task) -> list[Graph]:
    """The graph after each of its elements; `cls` has all objects from the start."""
    objects, edges = graph["objects"], graph["relationships"]
    first = [] if task == "cls" else [objects[: i + 1] for i in range(len(objects))]
    found: list[Graph] = [{"objects": some, "relationships": []} for some in first]
    if task != "det":
        found += [graph | {"relationships": edges[: i + 1]} for i in range(len(edges))]
    return found


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("task", SCORERS)
def test_increments_are_those_of_scoring_every_graph_whole(task: Task, seed: int) -> None:
    rng, scorer = random.Random(seed), SCORERS[task]
    if seed % 2:
        scorer = RewardScorer(scorer.rubric, task, ALIKE)
    reference, prediction = random_graph(rng, 8, 12), random_graph(rng, 12, 16)
    notation: NotationName = rng.choice(["json", "compact"])
    texts = [
        written(graph, notation, task) for graph in (prediction, *along_the_way(prediction, task))
    ]
    got, *of_steps = rewards(scorer, reference, texts, notation)
    totals = [0.0, *(of_graph(scorer, reward) for reward in of_steps)]
    expected = [after - before for before, after in pairwise(totals)]
    assert credit(got).increments == pytest.approx(expected, abs=1e-9)
    of_text = got.total - of_graph(scorer, got)
    assert sum(credit(got).increments) + of_text == pytest.approx(got.total)


@given(st.integers(1, 7), st.integers(1, 7), st.data())
def test_an_assignment_is_the_cheapest_after_every_row(
    rows: int, columns: int, data: st.DataObject
) -> None:
    size = rows * columns
    numbers = data.draw(st.lists(st.integers(0, 6), min_size=size, max_size=size))
    cost = np.array(numbers, dtype=float).reshape(rows, columns)
    held = [Held(*each) for each in over_prefixes(cost).tolist()]
    for number in range(1, rows + 1):
        now = [each for each in held if each.begin <= number < each.end]
        assert len({each.row for each in now}) == len(now) == min(number, columns)
        assert len({each.column for each in now}) == len(now)
        assert all(each.row < number for each in now)
        best = cost[:number][linear_sum_assignment(cost[:number])].sum()
        assert sum(cost[each.row, each.column] for each in now) == best


JSON = (
    '{"objects": [{"id": "man.1", "bbox": [0, 0, 50, 50]}, {"id": "hat.2", "bbox": [9, 9, 1, 1]}, '
    '{"id": "dog.3", "bbox": [1.5, 2, 30, 40]}], "relationships": [{"subject": "man.1", '
    '"predicate": "on", "object": "dog.3"}, {"subject": "man.1", "predicate": "on", "object": '
    '"hat.2"}]}'
)
COMPACT = (
    "objects\nA man 0 0 50 50\nB hat 9 9 1 1\nC dog 1 2 30 40\nrelationships\nA on C\nA on B\nend"
)
AROUND = (
    "{}",
    "<answer>{}</answer>",
    "<think>so</think>\n<answer>\n{}",
    "```json\n{}\n```",
    "so: {}",
)


@given(
    NOTATIONS,
    st.sampled_from(AROUND),
    st.lists(st.tuples(st.integers(0, 400), st.sampled_from('{}[]",:\\1a \n<é'), st.booleans())),
    TASKS,
    st.booleans(),
)
@example("json", "{}", [], "sgg", False)
def test_elements_do_not_depend_on_what_follows(
    notation: NotationName,
    around: str,
    changes: list[tuple[int, str, bool]],
    task: Task,
    thinking: bool,
) -> None:
    text = around.replace("{}", JSON if notation == "json" else COMPACT)
    for place, letter, replaces in changes[:3]:
        text = text[:place] + letter + text[place + replaces :]
    whole = read_elements(text, (100, 80), task, notation, thinking=thinking)
    ends = [end for _, end in whole.spans]
    assert ends == sorted(ends)
    for cut in range(len(text)):
        part = read_elements(text[:cut], (100, 80), task, notation, thinking=thinking)
        assert part.spans == whole.spans[: sum(end <= cut for end in ends)]
        assert part.kept == [place for place in whole.kept if place < len(part.spans)]
        assert part.columns.ids == whole.columns.ids[: len(part.columns.ids)]


@pytest.mark.parametrize(("notation", "text"), [("json", JSON), ("compact", COMPACT)])
def test_spans_are_of_the_elements_and_dropped_ones_add_nothing(
    notation: NotationName, text: str
) -> None:
    reference: Graph = {
        "objects": [
            {"id": "man.1", "bbox": [0, 0, 50, 50]},
            {"id": "dog.2", "bbox": [1, 2, 30, 40]},
        ],
        "relationships": [{"subject": "man.1", "predicate": "on", "object": "dog.2"}],
    }
    (got,) = rewards(make_scorer("balanced"), reference, [text], notation)
    found = credit(got)
    assert found.num_objects == 3
    parts = [text[start:end].strip() for start, end in found.spans]
    assert [
        ("hat" in part or part == "A on B", part[0] == text[found.spans[0][0]]) for part in parts
    ]
    assert [increment > 0 for increment in found.increments] == [True, False, True, True, False]
    assert got.total == pytest.approx(sum(found.increments))  # no tags: format is 0


@pytest.mark.parametrize("text", [JSON[:-2], JSON.replace('"hat.2"}]}', '"hat.2"}]} and so on')])
def test_a_text_that_fails_keeps_what_its_elements_added_before(text: str) -> None:
    reference = {"objects": [{"id": "man.1", "bbox": [0, 0, 50, 50]}], "relationships": []}
    good, bad = rewards(make_scorer("balanced"), reference, [JSON, text])
    assert (bad.status, bad.total) == ("invalid_json", 0.0)
    assert credit(bad) == credit(good)


def test_thinking_has_no_elements() -> None:
    text = f"<think>{JSON}</think><answer>{JSON}</answer>"
    (got,) = rewards(make_scorer("balanced"), {"objects": [], "relationships": []}, [text])
    assert credit(got).spans[0][0] > text.index("</think>")


def test_nobody_who_does_not_ask_gets_credit() -> None:
    group = RewardGroup(
        group_id="g",
        image_size=(9, 9),
        box_space="relative_1",
        reference={"objects": [], "relationships": []},
        completions=[JSON],
    )
    (scored,) = make_scorer("balanced").score([group])
    assert "credit" not in scored.model_dump()["rewards"][0]
