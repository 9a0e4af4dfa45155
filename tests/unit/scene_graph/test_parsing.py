"""Reading scene graphs from model text: honest, broken and hostile."""

import json
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scene_graph.boxes import RELATIVE_1, RELATIVE_1000, BoxSpace
from scene_graph.cleaning import Task, clean_columns
from scene_graph.graph import Relationship, SceneGraph, SceneObject
from scene_graph.json_limits import json_shape
from scene_graph.notations.json_text import read_any, read_well_formed
from scene_graph.parsing import Limits, find_answer, parse_completion

MAN = {"id": "man.1", "bbox": [100, 200, 300, 400]}
HORSE = {"id": "horse.2", "bbox": [0, 0, 1000, 500]}
RIDING = {"subject": "man.1", "predicate": "riding", "object": "horse.2"}


def written(objects: list[Any], relationships: list[Any]) -> str:
    return json.dumps({"objects": objects, "relationships": relationships})


GOOD = written([MAN, HORSE], [RIDING])


def test_boxes_leave_their_space() -> None:
    graph = parse_completion(GOOD, RELATIVE_1000).graph
    assert graph.objects[0] == SceneObject(id="man.1", bbox=(0.1, 0.2, 0.3, 0.4))
    assert parse_completion(GOOD, BoxSpace.pixels(1000, 500)).graph.objects[1].bbox == (0, 0, 1, 1)
    assert graph.relationships == (
        Relationship(subject="man.1", predicate="riding", object="horse.2"),
    )


@pytest.mark.parametrize(
    ("text", "think", "answer"),
    [
        (GOOD, False, False),
        (f"<answer>{GOOD}</answer>", False, True),
        (f" <think>two\nthings</think>\n<answer>\n{GOOD}\n</answer>\n", True, True),
        (f"<think>not <answer>{{}}</answer> yet</think><answer>{GOOD}</answer>", True, True),
        (f"<answer>{GOOD}", False, False),
        (f"Sure! <answer>{GOOD}</answer>", False, False),
        (f"<answer>{GOOD}</answer> done", False, False),
        (f"<answer>```json\n{GOOD}\n```</answer>", False, True),
        (f"```\n{GOOD}```", False, False),
        (f"<think>a</think>{GOOD}", True, False),
        # The prompt's template opened <think>.
        (f"a man\n</think>\n<answer>{GOOD}</answer>", True, True),
        (f"</think><answer>{GOOD}</answer>", True, True),
        (f"or <answer>{{}}</answer>?</think>no</think><answer>{GOOD}</answer>", True, True),
        (f"<think>a</think>b</think><answer>{GOOD}</answer>", True, True),
        # Text outside the tags.
        (f"Sure! <think>a</think><answer>{GOOD}</answer>", False, False),
        (f"<think>a</think> so <think>b</think><answer>{GOOD}</answer>", False, False),
        (f"a</think> Here it is: <answer>{GOOD}</answer>", True, False),
        # What R1-SGG's published extraction reads, too.
        (f"{GOOD}\n```", False, False),
        (f"json\n{GOOD}", False, False),
        (f"<answer>\njson\n{GOOD}\n</answer>", False, True),
        (f"<answer>{GOOD}\n```</answer>", False, True),
        (f"```json\n<answer>{GOOD}</answer>\n```", False, False),
        (f"<answer>``` json {GOOD}``` ```</answer>", False, True),
        (f"{GOOD}</answer>", False, False),
        (f"<answer><answer>{GOOD}</answer>", False, False),
        (GOOD.replace('}], "rel', '}]```, "rel'), False, False),
    ],
)
def test_the_answer_is_found(text: str, think: bool, answer: bool) -> None:
    parsed = parse_completion(text, RELATIVE_1000)
    assert (parsed.status, len(parsed.graph.objects)) == ("ok", 2)
    assert (parsed.has_think_tags, parsed.has_answer_tags) == (think, answer)


def test_only_the_fence_is_dropped() -> None:
    text = "```json\n" + written([{"id": "json.1", "bbox": [0, 0, 1, 1]}], []) + "\n```"
    assert parse_completion(text, RELATIVE_1).graph.objects[0].category == "json"


def test_a_name_stays_whole_where_the_word_json_is_taken_out() -> None:
    """R1-SGG's code takes it out of names, too."""
    objects = [{"id": name, "bbox": [0, 0, 1, 1]} for name in ("json.1", "```.2", 'a "json\\".3')]
    parsed = parse_completion(f"json\n{written(objects, [])}\n```", RELATIVE_1)
    assert [o.category for o in parsed.graph.objects] == ["json", "```", 'a "json\\"']


@pytest.mark.parametrize(
    ("name", "category"),
    [
        ("traffic light.2", "traffic light"),
        ("man", "man"),
        ("man.a", "man"),
        ("horse.2.1", "horse"),
        ("Man .1", "man"),
    ],
)
def test_a_category_is_the_id_up_to_its_first_dot(name: str, category: str) -> None:
    one, other = {"id": name, "bbox": [0, 0, 1, 1]}, {"id": f"{name}.7", "bbox": [0, 0, 1, 1]}
    graph = parse_completion(written([one, other], []), RELATIVE_1).graph
    assert [o.category for o in graph.objects] == [category, category]
    assert len({o.id for o in graph.objects}) == 2  # ids are distinct as a whole


def r1_sgg_reads(text: str) -> bool:
    """Its rule, written down anew: whether it finds a JSON object."""
    text = text.replace("```", " ").replace("json", " ").strip()
    _, opening, inside = text.partition("<answer>")
    try:
        found = json.loads(inside.partition("</answer>")[0] if opening else text)
    except ValueError:
        return False
    return isinstance(found, dict)


pieces = st.sampled_from(
    ["```", "json", "<answer>", "</answer>", "\n", " ", "JSON", "A man. ", "{", '"', GOOD, GOOD]
)


@given(st.lists(pieces, max_size=8).map("".join))
def test_what_r1_sgg_reads_is_read(text: str) -> None:
    if r1_sgg_reads(text):
        parsed = parse_completion(text, RELATIVE_1000)
        assert (parsed.status, len(parsed.graph.objects), parsed.dropped) == ("ok", 2, {})


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("", "no_answer"),
        (f"<think><answer>{GOOD}</answer></think>", "no_answer"),
        (f"<answer>{GOOD}</answer></think>", "no_answer"),
        ("<answer></answer>", "no_answer"),
        ("I see a man on a horse.", "no_answer"),
        ("<think>it goes on and on", "no_answer"),
        ("[]", "schema_violation"),
        ("{}", "schema_violation"),
        ('{"objects": []}', "schema_violation"),
        ('{"objects": {}, "relationships": []}', "schema_violation"),
        ("{'objects': [], 'relationships': []}", "invalid_json"),
        (GOOD + " and more", "invalid_json"),
        (GOOD.replace("100", "NaN"), "invalid_json"),
        (GOOD.replace("100", "-Infinity"), "invalid_json"),
        ('{"a":' * 40 + "1" + "}" * 40, "too_large"),
    ],
)
def test_what_is_wrong_as_a_whole_has_a_status(text: str, status: str) -> None:
    parsed = parse_completion(text, RELATIVE_1000)
    assert parsed.status == status
    assert parsed.graph == SceneGraph(objects=(), relationships=())


@pytest.mark.parametrize(
    ("text", "truncated"),
    [
        (GOOD[:30], True),
        ("<answer>" + GOOD[:-1], True),
        ("```json\n" + GOOD[:50], True),
        ('{"objects": [{"id": "a}]}', True),  # inside a string, brackets do not count
        (f"<answer>{GOOD[:-1]}</answer>", False),
        ("```\n" + GOOD[:50] + "\n```", False),
        (GOOD + "}", False),
    ],
)
def test_a_text_that_stops_inside_the_json_is_truncated(text: str, truncated: bool) -> None:
    parsed = parse_completion(text, RELATIVE_1000)
    assert (parsed.status, parsed.truncated) == ("invalid_json", truncated)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"id": "dog.3", "bbox": [5, 0, 5, 9]}, "inverted_box"),
        ({"id": "dog.3", "bbox": [0, 9, 5, 2]}, "inverted_box"),
        ({"id": "man.1", "bbox": [0, 0, 1, 1]}, "duplicate_id"),
        ({"id": "MAN.1", "bbox": [0, 0, 1, 1]}, "duplicate_id"),
        ({"id": "dog.3", "bbox": [0, 0, 1]}, "malformed_object"),
        ({"id": "dog.3", "bbox": [0, 0, 1, "1"]}, "malformed_object"),
        ({"id": "dog.3", "bbox": [0, 0, 1, True]}, "malformed_object"),
        ({"id": "dog.3"}, "malformed_object"),
        ({"id": ".3", "bbox": [0, 0, 1, 1]}, "malformed_object"),
        ({"id": 3, "bbox": [0, 0, 1, 1]}, "malformed_object"),
        ({"id": "dog.3", "bbox": [0, 0, 1, 2e6]}, "non_finite_box"),
        ("dog.3", "malformed_object"),
    ],
)
def test_a_bad_object_costs_itself(bad: Any, reason: str) -> None:
    parsed = parse_completion(written([MAN, HORSE, bad], [RIDING]), RELATIVE_1000)
    assert parsed.dropped == {reason: 1}
    assert [o.id for o in parsed.graph.objects] == ["man.1", "horse.2"]
    assert len(parsed.graph.relationships) == 1


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (RIDING | {"object": "dog.3"}, "dangling_relationship"),
        (RIDING, "repeated_triplet"),
        (RIDING | {"predicate": " RIDING "}, "repeated_triplet"),
        (RIDING | {"predicate": " - "}, "malformed_relationship"),
        ({"subject": "man.1", "object": "horse.2"}, "malformed_relationship"),
        (["man.1", "riding", "horse.2"], "malformed_relationship"),
    ],
)
def test_a_bad_relationship_costs_itself(bad: Any, reason: str) -> None:
    parsed = parse_completion(written([MAN, HORSE], [RIDING, bad]), RELATIVE_1000)
    assert (parsed.dropped, len(parsed.graph.relationships)) == ({reason: 1}, 1)


def test_a_dropped_object_takes_its_relationships_along() -> None:
    text = written([MAN, HORSE | {"bbox": [9, 9, 1, 1]}], [RIDING])
    parsed = parse_completion(text, RELATIVE_1000)
    assert parsed.dropped == {"inverted_box": 1, "dangling_relationship": 1}
    assert parsed.graph.relationships == ()


def test_numbers_too_large_for_a_float_are_no_box() -> None:
    for number in ("1e999", "9" * 5000):
        parsed = parse_completion(GOOD.replace("[100,", f"[{number},"), RELATIVE_1000)
        assert parsed.dropped["non_finite_box"] == 1


def test_names_are_equal_across_case_dash_and_underscore() -> None:
    objects = [{"id": "Traffic_Light.1", "bbox": [0, 0, 1, 1]}, MAN]
    edge = {"subject": "traffic-light.1", "predicate": "In_Front  of", "object": "man.1"}
    graph = parse_completion(written(objects, [edge]), RELATIVE_1000).graph
    assert graph.objects[0].category == "traffic light"
    assert graph.relationships[0].predicate == "in front of"


def test_of_a_repeated_key_the_last_value_counts() -> None:
    text = '{"objects": 1, ' + GOOD[1:]
    assert parse_completion(text, RELATIVE_1000).status == "ok"


def test_an_unknown_box_space_is_the_callers_mistake() -> None:
    with pytest.raises(ValueError, match="box space"):
        BoxSpace.parse("inches")


def test_the_limits_hold_at_their_edge() -> None:
    limits = Limits(objects=2, relationships=1, num_bytes=len(GOOD))
    assert parse_completion(GOOD, RELATIVE_1000, limits).status == "ok"
    assert parse_completion(GOOD + " ", RELATIVE_1000, limits).status == "too_large"
    three = written([MAN, HORSE, MAN], [])
    two_edges = written([MAN, HORSE], [RIDING, RIDING])
    roomy = Limits(objects=2, relationships=1)
    assert parse_completion(three, RELATIVE_1000, roomy).status == "too_large"
    assert parse_completion(two_edges, RELATIVE_1000, roomy).status == "too_large"


@pytest.mark.parametrize(
    "text",
    [
        written([{"id": f"x.{i}", "bbox": [0, 0, 1, 1]} for i in range(100_000)], []),
        "[" * 3_000_000,
        "[" * 100_000,
        '{"objects":' * 20_000,
        '"' * 200_000 + "{",
        '{"' + '\\"' * 100_000,
        "{" + "\\" * 200_001,
        "<answer>" * 30_000,
        "<think>" * 30_000,
        "```" * 80_000,
        "json" * 60_000 + "{",
        "</think>" * 30_000,
        "<think></think>" * 16_000,
        '{"' + '\\"' * 100_000 + "\\",
        "{" + '"\\' * 100_000,
        written([{"id": "a" * 250_000 + ".1", "bbox": [0, 0, 1, 1]}], []),
        written([{"id": "a.1", "bbox": [0, 0, 1, 1], "x": "\ud800"}], []),
        "{" + "1" * 250_000,
        '{"objects": [], "relationships": [], "x": ' + "9" * 250_000 + "}",
    ],
)
def test_hostile_text_gets_a_status(text: str) -> None:
    """That these end at all is the point: a quadratic step would take minutes."""
    parsed = parse_completion(text, RELATIVE_1000)
    assert parsed.status in {"ok", "no_answer", "invalid_json", "schema_violation", "too_large"}
    assert len(parsed.graph.objects) <= 500


@given(st.text())
def test_no_text_raises(text: str) -> None:
    parse_completion(text, RELATIVE_1000)


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(st.lists(json_values | st.just(MAN)), st.lists(json_values | st.just(RIDING)))
def test_every_part_is_kept_or_counted(objects: list[Any], relationships: list[Any]) -> None:
    parsed = parse_completion(written(objects, relationships), RELATIVE_1000)
    if parsed.status == "ok":
        kept = len(parsed.graph.objects) + len(parsed.graph.relationships)
        assert kept + sum(parsed.dropped.values()) == len(objects) + len(relationships)


def test_cleaning_twice_changes_nothing() -> None:
    graph = parse_completion(GOOD, RELATIVE_1000).graph
    columns, dropped = clean_columns(graph.objects, graph.relationships, RELATIVE_1.scale)
    assert (columns.to_graph(), dropped) == (graph, {})


@pytest.mark.parametrize(
    ("text", "depth"),
    [
        ("", 0),
        ("[]", 1),
        ('{"a": [[], {}]}', 3),
        ('"[[["', 0),
        ('"\\"[" []', 1),
        ('"\\\\" [] "["', 1),
        ('"\\\\\\"[" ""', 0),
        ('"[', 0),
    ],
)
def test_nesting_depth_ignores_strings(text: str, depth: int) -> None:
    assert json_shape(text.encode()).nesting == depth


@given(json_values)
def test_cut_json_is_unfinished_and_whole_json_is_not(value: Any) -> None:
    text = json.dumps([value])
    assert not json_shape(text.encode()).unclosed
    assert json_shape(text[:-1].encode()).unclosed


part_keys = st.sampled_from(["id", "bbox", "subject", "predicate", "object", "x"])
part_values = st.one_of(
    st.sampled_from(["man.1", "horse.2", "on", 1, True, None, 1e400]),
    st.lists(st.sampled_from([0, 1.5, 900, True, "7"]), min_size=3, max_size=5),
)
parts = st.lists(st.one_of(st.dictionaries(part_keys, part_values), st.just(MAN), st.just(RIDING)))


@given(parts, parts, st.sampled_from(["", ', "x": [NaN]', ', "objects": []', ', "x": "\\ud800"']))
def test_well_formed_text_is_read_fast_and_alike(
    objects: list[Any], relationships: list[Any], extra: str
) -> None:
    """Two decoders: what the fast one accepts, the patient one reads the same."""
    text = written(objects, relationships)[:-1] + extra + "}"
    for task in get_args(Task):
        fast = read_well_formed(text, task)
        if fast is not None:
            patient = read_any(find_answer(text), task)
            assert patient.status == "ok"
            scale = (1000.0, 1000.0)
            assert clean_columns(fast.objects, fast.relationships, scale, task) == clean_columns(
                patient.objects, patient.relationships, scale, task
            )
    assert read_well_formed(GOOD, "sgg") is not None
