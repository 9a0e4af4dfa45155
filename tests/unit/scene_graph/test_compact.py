"""The compact notation: nothing is lost in it, and bad answers are judged as JSON's are."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scene_graph.boxes import RELATIVE_1000
from scene_graph.cleaning import Task, clean_columns
from scene_graph.faults import main_fault
from scene_graph.graph import Relationship, SceneGraph, SceneObject
from scene_graph.notations.compact import label_of, number_of, write
from scene_graph.parsing import ParsedCompletion, parse_completion

GOOD = "objects\nA man 100 200 300 400\nB horse 0 0 1000 500\nrelationships\nA riding B\nend"


def parsed(text: str, task: Task = "sgg") -> ParsedCompletion:
    return parse_completion(text, RELATIVE_1000, task=task, notation="compact")


def test_an_answer_is_the_graph_that_json_has() -> None:
    for text in (GOOD, f"<answer>\n{GOOD}\n</answer>", f"<think>a</think>```\n{GOOD}\n```"):
        assert parsed(text).graph == SceneGraph(
            objects=(
                SceneObject(id="man.1", bbox=(0.1, 0.2, 0.3, 0.4)),
                SceneObject(id="horse.2", bbox=(0.0, 0.0, 1.0, 0.5)),
            ),
            relationships=(Relationship(subject="man.1", predicate="riding", object="horse.2"),),
        )
    assert parsed(f"<answer>\n{GOOD}\n</answer>").has_answer_tags


names = st.text(min_size=1) | st.sampled_from(
    [
        "man.1",
        "horse.2",
        "horse.1",
        "traffic light.27",
        "route 66",
        "5",
        "a.b.3",
        "</answer>",
        "end",
    ]
)
numbers = st.integers(-2000, 2000) | st.floats(allow_nan=False, allow_infinity=False)
boxes = st.tuples(numbers, numbers, numbers, numbers)


@st.composite
def graphs(draw: st.DrawFn) -> SceneGraph:
    ids = draw(st.lists(names, max_size=8))
    objects = tuple(SceneObject(id=name, bbox=draw(boxes)) for name in ids)
    ends = st.sampled_from(ids or [""])
    edges = st.builds(Relationship, subject=ends, predicate=st.text(), object=ends)
    relationships = draw(st.lists(edges, max_size=8)) if ids else []
    return SceneGraph(objects=objects, relationships=tuple(relationships))


@given(graphs(), st.sampled_from(["sgg", "det", "cls"]), st.booleans())
def test_any_graph_is_read_as_it_was_written(graph: SceneGraph, task: Task, tags: bool) -> None:
    """With repeated ids, impossible boxes and any names: the same parts are dropped, too."""
    text = write(graph, task)
    found = parsed(f"<answer>\n{text}\n</answer>" if tags else text, task)
    columns, dropped = clean_columns(graph.objects, graph.relationships, (1000.0, 1000.0), task)
    assert (found.status, found.columns, found.dropped) == ("ok", columns, dropped)


def test_ids_keep_their_numbers_and_labels_are_few_tokens() -> None:
    objects = tuple(
        SceneObject(id=name, bbox=(0, 0, 9, 9)) for name in ("man.3", "tree.28", "man.1")
    )
    edge = Relationship(subject="tree.28", predicate="behind", object="man.1")
    text = write(SceneGraph(objects=objects, relationships=(edge,)), "sgg")
    assert text == (
        "objects\nC man 0 0 9 9\nAB tree 0 0 9 9\nA man 0 0 9 9\nrelationships\nAB behind A\nend"
    )
    graph = SceneGraph(objects=objects[:1] * 2, relationships=())
    assert write(graph, "det") == "objects\nA man.3 0 0 9 9\nB man.3 0 0 9 9\nend"
    bad = Relationship(subject="man.1", predicate="on", object="man.3")
    dangling = SceneGraph(objects=objects[1:], relationships=(bad,))
    with pytest.raises(ValueError, match=r"'man\.3', which is no object"):
        write(dangling, "sgg")


@given(st.integers(1, 500_000))
def test_labels_are_columns_of_a_spreadsheet(number: int) -> None:
    assert number_of(label_of(number)) == number
    assert [label_of(n) for n in (1, 26, 27, 52, 702, 703)] == ["A", "Z", "AA", "AZ", "ZZ", "AAA"]


@pytest.mark.parametrize(
    ("text", "status", "truncated", "fault"),
    [
        ("A man rides a horse.", "no_answer", False, "the answer has no line `objects`"),
        (
            '{"objects": [], "relationships": []}',
            "no_answer",
            False,
            "the answer has no line `objects`",
        ),
        ("", "no_answer", False, "the answer has no line `objects`"),
        (
            f"Sure:\n{GOOD}",
            "invalid_json",
            False,
            "the answer does not begin with the line `objects`",
        ),
        (
            f"{GOOD}\nHope that helps",
            "invalid_json",
            False,
            "the answer goes on after the line `end`",
        ),
        (GOOD[:-3], "invalid_json", True, "the answer stops before its line `end`"),
        (GOOD[:40], "invalid_json", True, "the answer stops before its line `end`"),
        (f"<answer>{GOOD[:-3]}</answer>", "invalid_json", False, "the answer has no line `end`"),
        (f"```\n{GOOD[:-3]}\n```", "invalid_json", False, "the answer has no line `end`"),
        (
            "objects\nA man 1 2 3 4\nend",
            "schema_violation",
            False,
            "the answer has no line `relationships`",
        ),
        (
            "objects\n" + "A\n" * 501 + "relationships\nend",
            "too_large",
            False,
            "the answer is over",
        ),
        (" " * 262_145, "too_large", False, "the answer is over the limits on size"),
        (GOOD, "ok", False, None),
        ("objects\nrelationships\nend", "ok", False, None),
        (GOOD.replace("\nend", "\nA\nend"), "ok", False, None),  # the smaller part alone is lost
    ],
)
def test_statuses(text: str, status: str, truncated: bool, fault: str | None) -> None:
    found = parsed(text)
    assert (found.status, found.truncated) == (status, truncated)
    words = main_fault(text, found)
    assert words is fault is None or (words or "").startswith(fault or "nothing")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("A horse 1 2 3 4", None),
        ("C man 1 2 3 4", None),
        ("A man 1 2 3 4", "duplicate_id"),
        ('Z "man.1" 1 2 3 4', "duplicate_id"),
        ("C cup 5 6 1 2", "inverted_box"),
        ("C cup 1 2 3 1e9", "non_finite_box"),
        ("C cup 1 2 3 1e999", "non_finite_box"),
        ("C cup 1 2 3", "malformed_object"),
        ("C cup 1 2 3 4 5", "malformed_object"),
        ("C cup 1 2 3 four", "malformed_object"),
        ("C cup 1 2 3 nan", "malformed_object"),
        ("C 1 2 3 4", "malformed_object"),
        ("cup 1 2 3 4", "malformed_object"),
        ('C "cup 1 2 3 4', "malformed_object"),
        ('C [1] "cup" 1 2 3 4', None),
        ("C .5 1 2 3 4", "malformed_object"),
        ("A riding B", "malformed_object"),
    ],
)
def test_a_bad_object_is_dropped_alone(line: str, reason: str | None) -> None:
    found = parsed(f"objects\nA man 0 0 9 9\n{line}\nrelationships\nend")
    assert (found.status, found.dropped) == ("ok", {} if reason is None else {reason: 1})


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("B next to A", None),
        ("A riding C", "dangling_relationship"),
        ("A riding A.1", "malformed_relationship"),
        ("A on B", "repeated_triplet"),
        ('A "on" B', "repeated_triplet"),
        ("A B", "malformed_relationship"),
        ("A", "malformed_relationship"),
        ("man.1 on horse.2", "malformed_relationship"),
        ("C cup 1 2 3 4", "malformed_relationship"),
    ],
)
def test_a_bad_relationship_is_dropped_alone(line: str, reason: str | None) -> None:
    lines = f"A man 0 0 9 9\nB cup 0 0 9 9\nrelationships\nA on B\n{line}\nend"
    found = parsed(f"objects\n{lines}")
    assert (found.status, found.dropped) == ("ok", {} if reason is None else {reason: 1})
    names = lines.replace(" 0 0 9 9", "")
    assert parsed(f"objects\n{names}", "cls").dropped == found.dropped


def test_the_fault_of_most_lines_shows_what_a_line_is() -> None:
    text = "objects\nman.1 [0, 0, 9, 9]\nrelationships\nend"
    assert main_fault(text, parsed(text)) == (
        "malformed_object: not a line such as: A man 100 200 300 400"
    )
    text = "objects\nA man 0 0 9 9\nrelationships\nman rides\nend"
    assert main_fault(text, parsed(text)) == (
        "malformed_relationship: not a line such as: A riding B"
    )


@given(st.text(st.sampled_from('objectsrelationshipsend AB."<\\1-\n')) | st.text())
def test_no_text_is_an_error(text: str) -> None:
    for task in ("sgg", "det", "cls"):
        found = parsed(text, task)
        main_fault(text, found, task)
        assert parsed(f"objects\n{text}\nrelationships\n{text}\nend", task).status != "no_answer"
