"""Rubrics that ship, and rubrics that a request brings along."""

import re
from typing import Any

import pytest
from fastapi.exceptions import RequestValidationError

from reward_service.app import describe
from reward_service.rubrics import RUBRICS, Rubric, find_rubric


def test_the_shipped_rubrics_have_the_published_weights() -> None:
    assert RUBRICS["r1-soft"].terms == {
        "format": 1,
        "node_category": 2,
        "node_box": 2,
        "edge": 5,
    }
    assert RUBRICS["r1-hard"].terms == {"format": 1, "edge_hard": 5}
    assert describe(RUBRICS["r1-soft"]).max_total == 10


def test_the_version_names_the_definition() -> None:
    soft = RUBRICS["r1-soft"]
    reordered = Rubric(name="mine", terms=dict(reversed(soft.terms.items())))
    assert reordered.rubric_version == soft.rubric_version
    heavier = Rubric(name=soft.name, terms=soft.terms | {"edge": 6.0})
    versions = {soft.rubric_version, heavier.rubric_version, RUBRICS["r1-hard"].rubric_version}
    assert len(versions) == 3


def test_a_rubric_in_full_is_used() -> None:
    rubric = find_rubric({"name": "mine", "terms": {"edge_hard": 2}})
    assert (rubric.name, rubric.terms) == ("mine", {"edge_hard": 2.0})


@pytest.mark.parametrize(
    ("wanted", "path", "message"),
    [
        ("r2", ("body", "rubric"), "r1-soft, r1-hard"),
        ({}, ("body", "rubric", "terms"), "required"),
        ({"terms": {}}, ("body", "rubric", "terms"), "at least 1"),
        ({"terms": {"beauty": 1}}, ("body", "rubric", "terms"), "no term 'beauty'"),
        ({"terms": {"edge": -1}}, ("body", "rubric", "terms", "edge"), "greater than 0"),
        ({"terms": {"edge": float("nan")}}, ("body", "rubric", "terms", "edge"), "finite|greater"),
        ({"terms": {"edge": float("inf")}}, ("body", "rubric", "terms", "edge"), "finite|less"),
        ({"terms": {"edge": 1}, "bonus": 1}, ("body", "rubric", "bonus"), "not permitted"),
    ],
)
def test_a_wrong_rubric_is_refused_by_path(
    wanted: Any, path: tuple[str, ...], message: str
) -> None:
    with pytest.raises(RequestValidationError) as caught:
        find_rubric(wanted)
    first = caught.value.errors()[0]
    assert first["loc"] == path
    assert re.search(message, first["msg"])
