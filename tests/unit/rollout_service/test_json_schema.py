"""Grammars of answers; schemas that would cost the engine too much are refused unread."""

import json
import random
import re
from functools import partial
from typing import Any

import pytest
from pydantic import ValidationError
from xgrammar import Grammar
from xgrammar.testing import _is_grammar_accept_string

from rollout_service.vllm.json_schema import (
    MAX_SCHEMA_BYTES,
    MAX_SCHEMA_COST,
    check_schema,
    constraint_of,
)
from scene_data.templates import answer_text
from scene_data.toy.scenes import SIDE, toy_scene
from scene_graph.boxes import RELATIVE_1, RELATIVE_1000, BoxSpace
from scene_graph.cleaning import TASK_LISTS, Task
from scene_graph.notations.answer import NotationName
from scene_graph.notations.json_schema import scene_graph_schema
from scene_graph.notations.notation import NOTATIONS, answer_grammar
from scene_graph.parsing import find_answer, parse_completion
from services.errors import InvalidInputError
from services.models.grammar_library import grammar_library
from services.schemas.common import Sampling

MAN = {"id": "man.1", "bbox": [0, 0, 10, 20]}


def test_a_schema_of_one_s_own() -> None:
    tree = {
        "$defs": {"leaf": {"type": "string", "maxLength": 20}},
        "type": "array",
        "items": {"$ref": "#/$defs/leaf"},
        "maxItems": 3,
    }
    assert json.loads(check_schema(tree)) == tree
    assert constraint_of(Sampling(json_schema=tree)) == {"json": check_schema(tree)}


def test_the_named_schema_is_within_the_limits() -> None:
    found = constraint_of(Sampling(json_schema="scene_graph"))
    assert found == {"json": check_schema(scene_graph_schema())}
    assert constraint_of(Sampling()) == {}


@pytest.mark.parametrize("thinking", [False, True])
@pytest.mark.parametrize("notation", NOTATIONS)
@pytest.mark.parametrize("task", TASK_LISTS)
def test_the_grammar_of_an_answer_is_what_we_teach(
    task: Task, notation: NotationName, thinking: bool
) -> None:
    text = answer_grammar(notation, task, thinking=thinking)
    assert constraint_of(Sampling(grammar=text)) == {"grammar": text}
    grammar = Grammar.from_ebnf(text)
    for space in (RELATIVE_1000, RELATIVE_1, BoxSpace.pixels(640, 480)):
        for index in range(5):
            graph = toy_scene(3, index, heldout=False)
            write = partial(answer_text, graph, space, width=SIDE, height=SIDE, task=task)
            taught = write(notation=notation, thinking="A man,\nand é." if thinking else None)
            assert _is_grammar_accept_string(grammar, taught)
            parsed = parse_completion(taught, space, task=task, notation=notation)
            assert (parsed.status, parsed.dropped) == ("ok", {})
            assert (parsed.has_think_tags, parsed.has_answer_tags) == (thinking, True)
            other = write(notation=notation, thinking=None if thinking else "A man.")
            assert not _is_grammar_accept_string(grammar, other)
            assert not _is_grammar_accept_string(grammar, find_answer(taught).text)


@pytest.mark.parametrize("task", TASK_LISTS)
def test_the_grammar_of_the_compact_notation_has_nothing_that_is_dropped(task: Task) -> None:
    grammar = Grammar.from_ebnf(answer_grammar("compact", task))

    def accepts(*lines: str) -> bool:
        return _is_grammar_accept_string(grammar, "\n".join(["<answer>", *lines, "</answer>"]))

    man, horse = ("A man", "B horse") if task == "cls" else ("A man 1 2 30 40", "B horse 1 2 3 4")
    edges = () if task == "det" else ("relationships", "A sitting on B")
    assert accepts("objects", man, horse, *edges, "end")
    assert accepts("objects", *edges[:1], "end")
    bad: tuple[tuple[str, ...], ...] = (
        (),
        ("objects", man),
        ("objects", man, "end", *edges) if edges else ("objects", man, "", "end"),
        (man, *edges, "end"),
    )
    if task != "cls":
        wrong = "man 1 2 3 4", "A man 1 2 3", "A man 1 2 3 4 5", "A 5 1 2 3 4", "A  man 1 2 3 4"
        bad += tuple(("objects", line, *edges, "end") for line in (*wrong, "A B", "A m%n 1 2 3 4"))
    for refused in bad:
        assert not accepts(*refused)


@pytest.mark.parametrize(
    "value",
    [
        {"objects": []},
        {"objects": [], "relationships": [], "more": 1},
        {"objects": [{**MAN, "bbox": [0, 0, 10]}], "relationships": []},
        {"objects": [{**MAN, "bbox": [0, 0, 10, -1]}], "relationships": []},
        {"objects": [{**MAN, "bbox": [0, 0, 10, 100000]}], "relationships": []},
        {"objects": [{**MAN, "id": "man"}], "relationships": []},
        {"objects": [{**MAN, "id": ".1"}], "relationships": []},
        {"objects": [MAN] * 101, "relationships": []},
        {"objects": [MAN], "relationships": [{"subject": "man.1", "object": "man.1"}]},
    ],
)
def test_the_grammar_of_json_has_nothing_that_is_dropped(value: Any) -> None:
    grammar = Grammar.from_ebnf(answer_grammar("json", "sgg"))
    text = json.dumps(value, separators=(",", ":"))
    assert not _is_grammar_accept_string(grammar, f"<answer>{text}</answer>")


@pytest.mark.parametrize("name", ["id", "number", "name", "object", "relationship"])
def test_patterns_mean_to_the_library_what_they_mean_to_python(name: str) -> None:
    """Not every pattern does: `(a|b)(c)?` reads `ab` with xgrammar 0.2.8."""
    rules = "\n".join(answer_grammar(notation, "sgg") for notation in NOTATIONS)
    (pattern,) = re.findall(rf"^{name} ::= Regex\((.*)\)$", rules, re.MULTILINE)
    grammar, pattern = Grammar.from_ebnf(f"root ::= Regex({pattern})"), json.loads(pattern)
    rng, accepted = random.Random(0), 0
    texts = [
        "12345",
        "0.125",
        "man's hat",
        "t-shirt",
        "man.1",
        "traffic light.23",
        "a" * 40 + ".999",
        "x" * 41,
    ]
    texts += ["AB man on horse 1 2 30.5 40\n", "A a b c d e f 0 0 9 1\n", "A sitting on B\n"]
    for _ in range(400):
        text = list(rng.choice(texts))
        for _ in range(rng.randrange(3)):
            place = rng.randrange(len(text))
            text[place : place + rng.randrange(2)] = rng.choice("0129. aAbZ'-\n%")
        expected = re.fullmatch(pattern, "".join(text)) is not None
        assert _is_grammar_accept_string(grammar, "".join(text)) == expected, text
        accepted += expected
    assert accepted > 10


def test_another_grammar_is_not_served() -> None:
    with pytest.raises(InvalidInputError, match=r"only those of answers"):
        constraint_of(Sampling(grammar='root ::= ("a"{1,9999}){1,9999}'))
    with pytest.raises(ValidationError, match="two constraints"):
        Sampling(grammar=answer_grammar("compact", "sgg"), json_schema="scene_graph")


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"enum": ["x" * MAX_SCHEMA_BYTES]}, "bytes"),
        (nested(40), "nested"),
        ({"maxLength": MAX_SCHEMA_COST + 1}, "over the limit"),
        ({"maxLength": 1e9}, "over the limit"),
        ({"minLength": -(10**400)}, "over the limit"),
        ({"properties": {"a": {}}, "maxProperties": 10**400}, "over the limit"),
        (
            {"maxLength": MAX_SCHEMA_COST, "items": {"minLength": -MAX_SCHEMA_COST}},
            "over the limit",
        ),
        ({"anyOf": [{"maxItems": MAX_SCHEMA_COST // 2 + 1}] * 2}, "over the limit"),
        ({"pattern": "(a{1,10000}){1,10000}"}, "over the limit"),
        ({"pattern": "((a{100}){100}){100}"}, "over the limit"),
        ({"patternProperties": {"a{99999}": {}}}, "over the limit"),
        # xgrammar needs 240 s for 1600 of them, and 2 s for 60 of which 30 are counted.
        ({"properties": {f"a{i}": {} for i in range(401)}}, "over the limit"),
        ({"properties": {f"a{i}": {} for i in range(60)}, "minProperties": 40}, "over the limit"),
        ({"properties": {str(i): {} for i in range(500)}, "required": [3, "0"]}, "over the limit"),
        ({"enum": [float("nan")]}, "NaN"),
        ({"pattern": "a" * 257}, "characters"),
        ({"$ref": "#"}, "defined there"),
        ({"$ref": "file:///etc/passwd"}, "defined there"),
        ({"$ref": "http://127.0.0.1/schema"}, "defined there"),
        ({"$ref": {"a": 1}}, "defined there"),
        ({"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, "itself: a"),
        ({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"items": {"$ref": "#/$defs/a"}}}}, "a, b"),
        ({"$defs": []}, "no object"),
        ({"properties": {"x": {"$dynamicRef": "#y"}}}, "not served"),
    ],
)
def test_what_would_cost_too_much(schema: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        check_schema(schema)


def test_properties_that_are_required_cost_little() -> None:
    names = [f"a{i}" for i in range(1000)]
    check_schema({"properties": {name: {} for name in names}, "required": names})
    check_schema({"properties": {f"a{i}": {} for i in range(400)}})


def test_a_trainer_that_replays_with_another_library_is_refused() -> None:
    own = Sampling(json_schema="scene_graph", grammar_library=grammar_library())
    assert constraint_of(own) == constraint_of(Sampling(json_schema="scene_graph"))
    other = Sampling(json_schema="scene_graph", grammar_library="xgrammar 0.0.1")
    with pytest.raises(InvalidInputError, match=r"with xgrammar 0\.0\.1, and this server has xgr"):
        constraint_of(other)
