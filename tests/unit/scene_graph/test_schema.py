"""The schema allows what the parser reads without loss, and nothing that it would drop."""

import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from scene_data.templates import answer_text
from scene_data.toy.scenes import SIDE, toy_scene
from scene_graph.boxes import RELATIVE_1, RELATIVE_1000, BoxSpace
from scene_graph.notations.answer import MAX_OBJECTS
from scene_graph.notations.json_schema import scene_graph_schema
from scene_graph.parsing import parse_completion

VALIDATOR = Draft202012Validator(scene_graph_schema())


@pytest.mark.parametrize("space", [RELATIVE_1000, RELATIVE_1, BoxSpace.pixels(640, 480)], ids=str)
def test_answers_that_we_teach_are_allowed_and_read(space: BoxSpace) -> None:
    for index in range(20):
        graph = toy_scene(3, index, heldout=False)
        text = answer_text(graph, space, width=SIDE, height=SIDE)
        bare = text.removeprefix("<answer>").removesuffix("</answer>")
        VALIDATOR.validate(json.loads(bare))
        parsed = parse_completion(bare, space)
        assert (parsed.status, parsed.dropped) == ("ok", {})
        assert len(parsed.graph.relationships) == len(graph.relationships)


MAN = {"id": "man.1", "bbox": [0, 0, 10, 20]}


@pytest.mark.parametrize(
    "value",
    [
        [],
        {"objects": []},
        {"objects": [], "relationships": [], "more": 1},
        {"objects": [{**MAN, "bbox": [0, 0, 10]}], "relationships": []},
        {"objects": [{**MAN, "bbox": [0, 0, 10, -1]}], "relationships": []},
        {"objects": [{**MAN, "bbox": [0, 0, 10, 1e6]}], "relationships": []},
        {"objects": [{**MAN, "id": "man"}], "relationships": []},
        {"objects": [{**MAN, "id": ".1"}], "relationships": []},
        {"objects": [MAN] * (MAX_OBJECTS + 1), "relationships": []},
        {"objects": [MAN], "relationships": [{"subject": "man.1", "object": "man.1"}]},
    ],
)
def test_what_the_parser_would_drop_is_not_allowed(value: Any) -> None:
    assert not VALIDATOR.is_valid(value)
