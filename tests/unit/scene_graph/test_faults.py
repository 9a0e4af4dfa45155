"""One reason in words for each completion that gives no graph, or the smaller part of one."""

import json
from typing import Any

import pytest

from scene_graph.boxes import RELATIVE_1000
from scene_graph.cleaning import Task
from scene_graph.faults import main_fault
from scene_graph.parsing import parse_completion

MAN = {"id": "man.1", "bbox": [100, 200, 300, 400]}
HORSE = {"id": "horse.2", "bbox": [0, 0, 1000, 500]}
RIDING = {"subject": "man.1", "predicate": "riding", "object": "horse.2"}


def written(objects: Any, relationships: Any) -> str:
    return json.dumps({"objects": objects, "relationships": relationships})


def fault(text: str, task: Task = "sgg") -> str | None:
    return main_fault(text, parse_completion(text, RELATIVE_1000, task=task), task)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (written([MAN, HORSE], [RIDING]), None),
        (written([], []), None),
        # Less than half of a list: the answer is worth something.
        (written([MAN, HORSE, {"id": "a.1"}], [RIDING]), None),
        ("A man rides.", "the answer has no JSON"),
        ("{oops}", "the answer is not JSON"),
        ('{"objects": [', "the answer stops inside its JSON"),
        ("[" * 40 + "]" * 40, "the answer is over the limits on size"),
        (json.dumps([MAN]), "the JSON is a list, not an object with the lists objects and"),
        ('{"objects": []}', "the JSON has no list relationships"),
        (written({}, []), "objects is an object, not a list"),
        (
            written([{"id": "man.1", "bbox_2d": [1, 2, 3, 4]}] * 2, [RIDING]),
            "malformed_object: no bbox, but bbox_2d",
        ),
        (
            written([{"label": "man", "bbox_2d": [1, 2, 3, 4]}], []),
            "malformed_object: no id and no bbox, but bbox_2d, label",
        ),
        (written([{"id": 1, "bbox": [1, 2, 3, 4]}], []), "malformed_object: the id is a number,"),
        (written([MAN | {"bbox": "[1,2]"}], []), "malformed_object: the bbox is a text, not four"),
        (written(["man.1"], []), "malformed_object: a text, not an object with id and bbox"),
        (written([MAN | {"id": ".1"}], []), "malformed_object: a name is empty"),
        (written([MAN | {"bbox": [9, 9, 1, 1]}], []), "inverted_box: x2 <= x1 or y2 <= y1"),
        (written([MAN | {"bbox": [0, 0, 1, 1e9]}], []), "non_finite_box: a coordinate"),
        (
            written([MAN, HORSE], [["man.1", "riding", "horse.2"]]),
            "malformed_relationship: a list, not an object with subject, predicate and object",
        ),
        (
            written([MAN, HORSE], ["man.1 -> riding -> horse.2"]),
            "malformed_relationship: a text, not an object",
        ),
        (
            written([MAN, HORSE], [{"subject": 0, "predicate": "on", "object": 1}]),
            "malformed_relationship: the subject is a number, not a text",
        ),
        (
            written([MAN, HORSE], [{"subject_id": 0, "predicate": "on", "object": 1}]),
            "malformed_relationship: no subject, but subject_id",
        ),
        (written([MAN], [RIDING]), "dangling_relationship: an end is no object of the graph"),
    ],
)
def test_the_main_fault_in_words(text: str, said: str | None) -> None:
    found = fault(text)
    assert found is said is None or (found or "").startswith(said or "nothing")


def test_only_lists_of_the_task_are_looked_at() -> None:
    assert fault(json.dumps({"objects": [MAN]}), "det") is None
    assert fault(json.dumps({"relationships": [RIDING]}), "cls") is None
    assert fault(json.dumps({"objects": [MAN]}), "cls") == "the JSON has no list relationships"


def test_long_keys_of_a_model_are_cut() -> None:
    text = written([{"id": "man.1", **{f"{i}" * 200: 1 for i in range(50)}}], [])
    assert len(fault(text) or "") < 200
