"""The rubrics that ship, and what the terms of a rubric make of it.

To add a rubric that ships, add it to `RUBRICS`; a run or a request can bring its own.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from reward_service.terms import TERMS
from services.errors import InvalidInputError
from services.http.problems import invalid_input, mistake
from services.schemas.rewards import Task
from services.schemas.rubrics import Rubric

RUBRICS: Mapping[str, Rubric] = {
    rubric.name: rubric
    for rubric in (
        Rubric(
            name="balanced",
            terms={
                "format": 0.5,
                "node_category": 0.5,
                "node_box": 0.5,
                "object_precision": 1.5,
                "triplet_f1": 7.0,
            },
        ),
        Rubric(
            name="r1-soft",
            terms={"format": 1.0, "node_category": 2.0, "node_box": 2.0, "edge": 5.0},
        ),
        Rubric(name="r1-hard", terms={"format": 1.0, "edge_hard": 5.0}),
        Rubric(name="r1-relaxed", terms={"format": 1.0, "edge_hard_relaxed": 5.0}),
    )
}


def terms_of(rubric: Rubric, task: Task) -> dict[str, float]:
    """The rubric's terms that apply to a task, with their weights."""
    return {name: weight for name, weight in rubric.terms.items() if task in TERMS[name].tasks}


def rubric_version(rubric: Rubric, similarity_version: str) -> str:
    """Digest of what is computed, whatever the rubric's name and the order of its terms."""
    parameters = rubric.model_dump(mode="json", exclude={"name", "similarity", "terms"})
    if rubric.predicate_frequency is not None:
        parameters["predicate_frequency"] = sorted(rubric.frequencies().items())
    terms = sorted((name, weight, TERMS[name].formula) for name, weight in rubric.terms.items())
    text = json.dumps([similarity_version, terms, parameters], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def rubric_for(wanted: str | dict[str, Any], task: Task) -> Rubric:
    """The rubric of `find_rubric`, where it can tell one graph of a task from another.

    Raises:
        InvalidInputError: As `find_rubric`; or no term of it is about this task's graphs.
    """
    rubric = find_rubric(wanted)
    if not set(terms_of(rubric, task)) - {"format", "length_penalty"}:
        raise InvalidInputError(
            f"rubric {rubric.name!r} has no term about the graph for task {task!r}; its terms: "
            f"{', '.join(name for name, term in TERMS.items() if task in term.tasks)}"
        )
    return rubric


def find_rubric(wanted: str | dict[str, Any]) -> Rubric:
    """The rubric that a request names, or gives in full.

    Raises:
        InvalidInputError: No rubric of this name ships, or the given one is wrong; the error names
            the path in the request's body.
    """
    if isinstance(wanted, str):
        if wanted not in RUBRICS:
            known = ", ".join(RUBRICS)
            raise mistake("body.rubric", f"no rubric {wanted[:100]!r}; rubrics are {known}")
        return RUBRICS[wanted]
    try:
        rubric = Rubric.model_validate(wanted)
    except ValidationError as error:
        raise invalid_input(error.errors(), ("body", "rubric")) from error
    for name in rubric.terms:
        if name not in TERMS:
            known = ", ".join(TERMS)
            raise mistake("body.rubric", f"no term {name[:100]!r}; terms are {known}")
    return rubric
