"""Explanations agree with scores, and say what a person needs to know."""

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from console.groups.coloured_text import coloured_text
from reward_service.explain.answer_spans import answer_spans
from reward_service.explain.explainer import Explainer, Explanation, explain_text
from reward_service.explain.words import object_reason
from reward_service.similarity.registry import Similarities
from scene_graph.boxes import RELATIVE_1, RELATIVE_1000, BoxSpace
from scene_graph.parsing import parse_completion
from services.schemas.rewards import RewardGroup, Task

TASKS: tuple[Task, ...] = ("sgg", "det", "cls")
RUBRIC = {"terms": {"format": 1.0, "node_box": 1.0, "object_precision": 1.0, "triplet_f1": 1.0}}
EXPLAINERS = {task: Explainer(RUBRIC, task) for task in TASKS}
TASK = st.sampled_from(TASKS)

ID = st.sampled_from(["man.1", "Man.1", "t-shirt.1", "T_shirt.1", "cup.2", ".3", "cup", "", "  "])
NUMBER = st.sampled_from([0, 1, 40, 50, 90, 100, 0.5, -3, 2e6, 1e999, 10**250, True, None, "7"])
BOX = st.one_of(
    st.sampled_from([[0, 0, 50, 50], [50, 0, 100, 100], [0, 0, 40, 50]]),
    st.lists(NUMBER, max_size=5),
)
JUNK: st.SearchStrategy[Any] = st.sampled_from(
    [None, 3, "man.1", [], {}, {"id": 7, "bbox": [0, 0, 1, 1]}, True]
)
OBJECT = st.one_of(st.fixed_dictionaries({"id": ID, "bbox": BOX}), JUNK)
WORD = st.one_of(st.sampled_from(["on", "On", "in_front-of", "in front of", "", "_"]), JUNK)
EDGE = st.fixed_dictionaries({"subject": ID, "predicate": WORD, "object": ID})
LISTS = st.tuples(st.lists(OBJECT, max_size=6), st.lists(st.one_of(EDGE, JUNK), max_size=6))


def group(text: str, reference: dict[str, Any], **more: Any) -> RewardGroup:
    fields = {"group_id": "g", "image_size": (100, 100), "box_space": "pixels:100x100"}
    return RewardGroup.model_validate(
        fields | {"reference": reference, "completions": [text]} | more
    )


def written(objects: Any, relationships: Any) -> str:
    # What Python writes as Infinity is no JSON; a number that overflows is.
    text = json.dumps({"objects": objects, "relationships": relationships})
    return text.replace("Infinity", "1e999")


@given(LISTS, TASK)
def test_listed_parts_are_those_that_were_counted(lists: tuple[Any, Any], task: Task) -> None:
    text = written(*lists)
    found = explain_text(text, BoxSpace.pixels(100, 100), task).dropped
    counted = parse_completion(text, BoxSpace.pixels(100, 100), task=task).dropped
    assert Counter(part.reason for part in found) == counted
    given_lists = {"objects": lists[0], "relationships": lists[1]}
    for part in found:
        assert json.loads(part.text) == given_lists[part.where][part.index]
        assert part.why


@st.composite
def graphs(draw: st.DrawFn) -> dict[str, Any]:
    """Well-formed, and so alike that all verdicts come up."""
    names = draw(st.lists(st.sampled_from(["man", "cup"]), min_size=1, max_size=4))
    boxes = st.sampled_from([[0, 0, 50, 50], [0, 0, 50, 60], [40, 0, 100, 100], [0, 90, 9, 99]])
    objects = [{"id": f"{name}.{i}", "bbox": draw(boxes)} for i, name in enumerate(names)]
    ids = st.sampled_from([item["id"] for item in objects])
    edge = st.tuples(ids, st.sampled_from(["on", "in"]), ids)
    edges = draw(st.lists(edge, max_size=5, unique=True))
    found = [{"subject": s, "predicate": p, "object": o} for s, p, o in edges]
    return {"objects": objects, "relationships": found}


@given(
    graphs() | LISTS.map(lambda two: {"objects": two[0], "relationships": two[1]}), graphs(), TASK
)
def test_verdicts_add_up_to_the_score(
    predicted: dict[str, Any], reference: dict[str, Any], task: Task
) -> None:
    one = group(written(**predicted), reference)
    (got,) = EXPLAINERS[task].explain(one)
    reward = EXPLAINERS[task].scorer.score([one])[0].rewards[0]
    assert (got.status, got.total) == (reward.status, reward.total)
    assert Counter(part.reason for part in got.dropped) == reward.dropped
    assert sum(term.contribution for term in got.terms) == pytest.approx(got.total)
    hits = [item for item in got.objects if item.verdict == "hit"]
    triplet_hits = [line for line in got.triplets if line.verdict == "hit"]
    assert (len(hits), len(triplet_hits)) == tuple(reward.matched.model_dump().values())
    values = {term.name: term.value for term in got.terms}
    if task != "cls":
        assert values["object_precision"] == pytest.approx(ratio(len(hits), len(got.objects)))
        assert len(hits) + len(got.missed_objects) == len(reference["objects"])
    if task != "det":
        num_reference = len(triplet_hits) + len(got.missed_triplets)
        precision = ratio(len(triplet_hits), sum(line.counted for line in got.triplets))
        recall = ratio(len(triplet_hits), num_reference)
        f1 = ratio(2 * precision * recall, precision + recall)
        assert values["triplet_f1"] == pytest.approx(f1)


def ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


@given(st.text() | st.text(alphabet='{}[]",:<>answer/think 10\\'), TASK)
def test_any_text_is_explained(text: str, task: Task) -> None:
    got = explain_text(text, RELATIVE_1000, task)
    assert got.status == parse_completion(text, RELATIVE_1000, task=task).status
    assert (got.failure is None) == (got.status == "ok")
    json.dumps(asdict(got), allow_nan=False)


MAN, HORSE, HAT = [0, 0, 40, 100], [50, 0, 100, 100], [0, 0, 40, 20]
REFERENCE: dict[str, Any] = {
    "objects": [
        {"id": "man.1", "bbox": MAN},
        {"id": "horse.1", "bbox": HORSE},
        {"id": "hat.1", "bbox": HAT},
    ],
    "relationships": [
        {"subject": "man.1", "predicate": "riding", "object": "horse.1"},
        {"subject": "man.1", "predicate": "wearing", "object": "hat.1"},
    ],
}
CUP = ("cup.1", [42, 0, 48, 9])
GOOD = [("man.7", MAN), ("horse.7", HORSE), ("hat.7", HAT)]


def explained(
    objects: list[tuple[str, list[int]]],
    edges: list[tuple[str, str, str]],
    explainer: Explainer = EXPLAINERS["sgg"],
) -> Explanation:
    text = written(
        [{"id": name, "bbox": box} for name, box in objects],
        [{"subject": s, "predicate": p, "object": o} for s, p, o in edges],
    )
    return explainer.explain(group(text, REFERENCE))[0]


def test_objects_have_verdicts_in_the_order_they_were_written() -> None:
    objects = [("cup.9", [99, 99, 100, 100]), ("dog.7", HORSE), ("hat.7", [0, 0, 40, 60])]
    got = explained([*objects, ("man.7", MAN)], [])
    lines = [(item.id, item.verdict, item.reference) for item in got.objects]
    assert lines == [
        ("cup.9", "junk", None),
        ("dog.7", "wrong_name", "horse.1"),
        ("hat.7", "box_off", "hat.1"),
        ("man.7", "hit", "man.1"),
    ]
    assert [item.iou for item in got.objects[1:]] == [1, pytest.approx(1 / 3), 1]
    missed = [(item.id, item.matched, item.bbox) for item in got.missed_objects]
    assert missed == [("horse.1", "dog.7", HORSE), ("hat.1", "hat.7", HAT)]


def test_an_object_that_is_matched_for_want_of_better_is_junk() -> None:
    got = explained([("cup.1", [90, 90, 99, 99])], [])
    (line,) = got.objects
    assert (line.verdict, line.similarity) == ("junk", 0)
    assert line.reference is not None
    assert len(got.missed_objects) == 3


@pytest.mark.parametrize(("wide", "verdict"), [(24, "hit"), (8, "box_off"), (2, "junk")])
def test_a_right_name_far_from_its_place_is_junk(wide: int, verdict: str) -> None:
    """A horse of IoU wide / 40; from 0.1 to 0.5 it is badly placed, under 0.1 another thing."""
    box = [50, 0, 50 + wide, 100]
    reference = {"objects": [{"id": "horse.1", "bbox": [50, 0, 90, 100]}], "relationships": []}
    text = written([{"id": "horse.7", "bbox": box}], [])
    (line,) = EXPLAINERS["sgg"].explain(group(text, reference))[0].objects
    assert line.iou == pytest.approx(wide / 40)
    assert line.verdict == verdict
    elsewhere = "its box is elsewhere: IoU is under 0.1"
    assert (object_reason(line) == elsewhere) == (verdict == "junk")


@pytest.mark.parametrize(
    ("objects", "edge", "verdict", "counted"),
    [
        (GOOD, ("man.7", "riding", "horse.7"), "hit", True),
        (GOOD, ("man.7", "eating", "horse.7"), "wrong_predicate", True),
        (GOOD, ("horse.7", "riding", "man.7"), "not_in_reference", True),
        ([*GOOD, CUP], ("horse.7", "riding", "man.7"), "not_in_reference", True),
        ([("man.7", MAN), ("dog.7", HORSE)], ("man.7", "riding", "dog.7"), "wrong_name", True),
        (
            [("man.7", MAN), ("horse.7", [80, 0, 100, 100])],
            ("man.7", "riding", "horse.7"),
            "box_off",
            False,
        ),
        ([*GOOD, CUP], ("man.7", "near", "cup.1"), "unannotated", False),
        (
            [("man.7", MAN), ("horse.7", [97, 0, 100, 100])],
            ("man.7", "eating", "horse.7"),
            "unannotated",
            False,
        ),
    ],
)
def test_a_triplet_has_the_verdict_that_says_most(
    objects: list[tuple[str, list[int]]], edge: tuple[str, str, str], verdict: str, counted: bool
) -> None:
    (line,) = explained(objects, [edge]).triplets
    assert (line.triplet, line.verdict, line.counted) == (edge, verdict, counted)
    assert line.reference == (("man.1", "riding", "horse.1") if verdict == "hit" else None)
    ends_matched = verdict not in ("not_in_reference", "unannotated")
    assert line.wanted == (["riding"] if ends_matched else [])


def test_a_second_triplet_for_the_same_reference_triplet_is_surplus() -> None:
    objects = [*GOOD, ("man.8", [0, 0, 41, 100])]
    got = explained(objects, [("man.7", "riding", "horse.7"), ("man.8", "riding", "horse.7")])
    assert sorted(line.verdict or "" for line in got.triplets) == ["hit", "surplus"]
    assert [item.triplet for item in got.missed_triplets] == [("man.1", "wearing", "hat.1")]


def test_names_that_the_similarity_knows_are_alike(tmp_path: Path) -> None:
    pairs = [["horse", "pony", 0.8]]
    table = {"format": "sgg-similarity/1", "source": "t", "names": ["horse", "pony"]}
    (tmp_path / "t.json").write_text(json.dumps(table | {"pairs": pairs}))
    rubric = RUBRIC | {"similarity": "table:t.json"}
    explainer = Explainer(rubric, "sgg", Similarities(tmp_path))
    objects = [("man.7", MAN), ("pony.7", HORSE)]
    got = explained(objects, [("man.7", "riding", "pony.7")], explainer)
    assert got.triplets[0].verdict == "alike"
    assert got.triplets[0].reference == ("man.1", "riding", "horse.1")
    assert (got.objects[1].verdict, got.objects[1].similarity) == ("wrong_name", 0.8)


def test_a_missed_triplet_says_which_of_its_ends_were_missed() -> None:
    got = explained([("man.7", MAN)], [])
    assert [(item.triplet[1], item.missed_ends) for item in got.missed_triplets] == [
        ("riding", ["horse.1"]),
        ("wearing", ["hat.1"]),
    ]
    got = explained(GOOD, [])
    assert [item.missed_ends for item in got.missed_triplets] == [[], []]


def test_names_alone_are_held_against_names() -> None:
    edges = [("man", "riding", "horse"), ("man", "holding", "hat"), ("cat", "on", "mat")]
    text = written([], [{"subject": s, "predicate": p, "object": o} for s, p, o in edges])
    (got,) = EXPLAINERS["cls"].explain(group(text, REFERENCE))
    assert not got.objects
    assert not got.missed_objects
    verdicts = [(line.verdict, line.wanted) for line in got.triplets]
    assert verdicts == [
        ("hit", ["riding"]),
        ("wrong_predicate", ["wearing"]),
        ("not_in_reference", []),
    ]
    assert [item.triplet for item in got.missed_triplets] == [("man.1", "wearing", "hat.1")]


def test_what_the_reference_lost_is_listed() -> None:
    objects = [*REFERENCE["objects"], {"id": "cup.1", "bbox": [5, 5, 1, 9]}]
    (got,) = EXPLAINERS["sgg"].explain(group("{}", REFERENCE | {"objects": objects}))
    assert [(part.where, part.index, part.reason) for part in got.reference_dropped] == [
        ("objects", 3, "inverted_box")
    ]
    assert (got.status, len(got.missed_objects)) == ("schema_violation", 3)


def test_a_dangling_relationship_says_what_became_of_its_end() -> None:
    edges = [{"subject": "man.1", "predicate": "on", "object": name} for name in ("cup.1", "x.1")]
    objects = [{"id": "man.1", "bbox": MAN}, {"id": "Cup.1", "bbox": [5, 5, 1, 9]}]
    got = explain_text(written(objects, edges), RELATIVE_1000)
    assert [(part.reason, part.why) for part in got.dropped[1:]] == [
        ("dangling_relationship", "the object cup.1 was dropped"),
        ("dangling_relationship", "no object has the id x.1"),
    ]


@pytest.mark.parametrize("before", ["", "json\n", "```json\n<answer>", "hm</think>json"])
def test_parts_are_named_whatever_stands_around_the_json(before: str) -> None:
    objects = [{"id": "man.1", "bbox": MAN}, {"id": "cup.2", "bbox_2d": MAN}]
    got = explain_text(f"{before}{written(objects, [['man.1', 'on', 'cup.2']])}\n```", RELATIVE_1)
    assert (got.status, [line.id for line in got.objects]) == ("ok", ["man.1"])
    assert [(part.reason, part.why) for part in got.dropped] == [
        ("malformed_object", "no bbox, but bbox_2d"),
        (
            "malformed_relationship",
            "a list, not an object with subject, predicate and object",
        ),
    ]


CUT = '<answer>\n{"objects": [{"id": "man'


@pytest.mark.parametrize(
    ("text", "message", "place", "after"),
    [
        ("I see a man.", "no JSON", (1, 1), "I see"),
        ("<think>a\nb</think>\n<answer></answer>", "no JSON", (3, 9), "</answer>"),
        (CUT, "the text stops inside the JSON (Unterminated string)", (2, 25), ""),
        ('<answer>\n{"objects" []}</answer>', "Expecting ':' delimiter", (2, 12), "[]}"),
        ('{"a": {}} and more', "Extra data", (1, 11), "and more"),
        ('<think>{"a": NaN}</think>{"b": "NaN", "a": NaN}', "NaN is not JSON", (1, 44), "NaN}"),
        ("hm\n</think>\n<answer>{oops</answer>", "Expecting property name", (3, 10), "oops"),
        ("hm</think>json\n[1]", "the JSON is a list, not an object", (1, 11), "json"),
        ("```json\n[1]\n```", "the JSON is a list, not an object", (2, 1), "[1]"),
        ('{"objects": []}', "the JSON has no list relationships", (1, 1), "{"),
        ('{"objects": null, "relationships": []}', "objects is null, not a list", (1, 1), "{"),
    ],
)
def test_a_failure_says_where_the_text_breaks(
    text: str, message: str, place: tuple[int, int], after: str
) -> None:
    failure = explain_text(text, RELATIVE_1000).failure
    assert failure is not None
    assert failure.place is not None
    assert message in failure.message
    assert (failure.place.line, failure.place.column) == place
    assert failure.place.after.startswith(after)
    assert text.endswith(failure.place.after) or len(failure.place.after) == 40


LINES = "objects\nA man 0 0 9 9\nB man\nA man 1 1 9 9\nrelationships\nA on C\nend"


def test_lines_of_the_compact_notation_are_explained_where_they_stand() -> None:
    text = f"<think>a</think>\n<answer>\n{LINES}\n</answer>"
    found = explain_text(text, RELATIVE_1, notation="compact")
    assert found.failure is None
    assert [(part.where, part.index, part.reason, part.why) for part in found.dropped] == [
        ("objects", 1, "malformed_object", "not a line such as: A man 100 200 300 400"),
        ("objects", 2, "duplicate_id", "an earlier object has this id"),
        ("relationships", 0, "dangling_relationship", "no object has the label C"),
    ]
    spans = answer_spans(text, "sgg", "compact")
    assert {name: [text[a:b] for a, b in places] for name, places in spans.items()} == {
        "objects": ["A man 0 0 9 9", "B man", "A man 1 1 9 9"],
        "relationships": ["A on C"],
    }
    assert [part.verdict for part in coloured_text(text, found)].count("dropped") == 3


some_objects = st.sampled_from(
    [
        "A man 0 0 9 9",
        "B man",
        "A cup 1 1 9 9",
        "C cup 9 9 1 1",
        'D "" 0 0 1 1',
        'E "_.1" 0 0 1 1',
        "F",
    ]
)
some_edges = st.sampled_from(["A on B", "A on C", "D on E", "A on Q", "E", 'A "" C', "A on A"])


@given(st.lists(some_objects), st.lists(some_edges), st.sampled_from(["sgg", "det", "cls"]))
def test_each_dropped_line_is_named_and_marked(
    objects: list[str], edges: list[str], task: Task
) -> None:
    text = "\n".join(["objects", *objects, "relationships", *edges, "end"])
    parsed = parse_completion(text, RELATIVE_1, task=task, notation="compact")
    found = explain_text(text, RELATIVE_1, task, notation="compact")
    assert Counter(part.reason for part in found.dropped) == parsed.dropped
    assert all(part.why for part in found.dropped)
    marked = [part for part in coloured_text(text, found) if part.verdict == "dropped"]
    assert len(marked) == sum(parsed.dropped.values())


@pytest.mark.parametrize(
    ("text", "message", "place"),
    [
        (LINES[:-3], "the answer stops before its line `end`", (6, 7)),
        (f"<answer>{LINES}\nmore</answer>", "the answer goes on after the line `end`", (8, 1)),
        ("Sure", "the answer has no line `objects`", (1, 1)),
        ("objects\nend", "the answer has no line `relationships`", (2, 1)),
    ],
)
def test_a_failure_of_lines_says_where_they_break(
    text: str, message: str, place: tuple[int, int]
) -> None:
    failure = explain_text(text, RELATIVE_1, notation="compact").failure
    assert failure is not None
    assert failure.place is not None
    assert (failure.message, (failure.place.line, failure.place.column)) == (message, place)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x" * 300_000, "over 256 KiB of text"),
        ("[" * 40, "nested over 32 deep"),
        (written([1] * 501, []), "over 500 objects or 2000 relationships"),
    ],
)
def test_what_is_too_large_is_named(text: str, message: str) -> None:
    failure = explain_text(text, RELATIVE_1000).failure
    assert failure is not None
    assert message in failure.message
    assert failure.place is None


@pytest.mark.parametrize(
    ("text", "thinking", "faults"),
    [
        (f"<answer>{written([{'id': 'a.1', 'bbox': MAN}], [])}</answer>", False, []),
        (written([{"id": "a.1", "bbox": MAN}], []), False, ["just <answer>"]),
        (f"<answer>{written([], [])}</answer>", True, ["<think>", "no objects"]),
        (f"<answer>{written([1], [])}</answer>", False, ["1 part was dropped", "no objects"]),
        ("no", False, ["no_answer"]),
    ],
)
def test_what_is_wrong_with_the_form_is_listed(
    text: str, thinking: bool, faults: list[str]
) -> None:
    found = explain_text(text, RELATIVE_1000, require_thinking=thinking).format_faults
    assert len(found) == len(faults)
    assert all(fault in line for fault, line in zip(faults, found, strict=True))
