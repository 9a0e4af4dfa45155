"""Rubrics that ship, and rubrics that a request brings along."""

import re
from typing import Any

import pytest

from reward_service.rubrics import RUBRICS, find_rubric, rubric_version
from reward_service.scoring import make_scorer
from services.errors import InvalidInputError
from services.schemas.rubrics import Rubric


def test_the_shipped_rubrics_have_the_published_weights() -> None:
    assert RUBRICS["r1-soft"].terms == {
        "format": 1,
        "node_category": 2,
        "node_box": 2,
        "edge": 5,
    }
    assert RUBRICS["r1-hard"].terms == {"format": 1, "edge_hard": 5}
    assert RUBRICS["r1-relaxed"].terms == {"format": 1, "edge_hard_relaxed": 5}
    assert make_scorer("r1-soft").max_total == 10


def test_the_version_names_the_definition() -> None:
    soft = RUBRICS["r1-soft"]
    reordered = Rubric(name="mine", terms=dict(reversed(soft.terms.items())))
    assert rubric_version(reordered, "exact") == rubric_version(soft, "exact")
    changes: list[dict[str, Any]] = [
        {"terms": soft.terms | {"edge": 6.0}},
        {"beta": 2.0},
        {"format_partial_credit": True},
        {"length": {"start": 1, "end": 2}},
        {"predicate_frequency": {"on": 2}},
    ]
    others = [Rubric.model_validate(soft.model_dump() | change) for change in changes]
    versions = {rubric_version(r, "exact") for r in [soft, *others, *RUBRICS.values()]}
    versions.add(rubric_version(soft, "table 1"))
    assert len(versions) == len(changes) + len(RUBRICS) + 1


def test_a_rubric_in_full_is_used() -> None:
    rubric = find_rubric({"name": "mine", "terms": {"edge_hard": 2}})
    assert (rubric.name, rubric.terms) == ("mine", {"edge_hard": 2.0})


@pytest.mark.parametrize(
    ("wanted", "path", "message"),
    [
        ("r2", ("body", "rubric"), "balanced, r1-soft, r1-hard, r1-relaxed"),
        ({}, ("body", "rubric", "terms"), "required"),
        ({"terms": {}}, ("body", "rubric", "terms"), "at least 1"),
        ({"terms": {"beauty": 1}}, ("body", "rubric"), "no term 'beauty'"),
        ({"terms": {"length_penalty": 1}}, ("body", "rubric"), "needs length"),
        ({"terms": {"predicate_balanced": 1}}, ("body", "rubric"), "needs predicate_frequency"),
        (
            {"terms": {"edge": 1}, "length": {"start": 5, "end": 5}},
            ("body", "rubric", "length"),
            "must be above",
        ),
        ({"terms": {"edge": 1}, "beta": 0}, ("body", "rubric", "beta"), "greater than 0"),
        ({"terms": {"edge": -1}}, ("body", "rubric", "terms", "edge"), "greater than 0"),
        ({"terms": {"edge": float("nan")}}, ("body", "rubric", "terms", "edge"), "finite|greater"),
        ({"terms": {"edge": float("inf")}}, ("body", "rubric", "terms", "edge"), "finite|less"),
        ({"terms": {"edge": 1}, "bonus": 1}, ("body", "rubric", "bonus"), "not permitted"),
    ],
)
def test_a_wrong_rubric_is_refused_by_path(
    wanted: Any, path: tuple[str, ...], message: str
) -> None:
    with pytest.raises(InvalidInputError) as caught:
        find_rubric(wanted)
    first = caught.value.mistakes[0]
    assert first.path == ".".join(path)
    assert re.search(message, first.message)
