"""Rubrics: which terms a reward consists of, how much each weighs, and their parameters.

To add a rubric that ships, add it to `RUBRICS`; a run or a request can bring its own.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from reward_service.terms import TERMS
from scene_graph.graph import normalise_name
from services.errors import InvalidInputError, Mistake
from services.http.problems import invalid_input
from services.schemas.common import Message, Name
from services.schemas.rewards import Task

Weight = Annotated[float, Field(gt=0, le=1000)]


class LengthPenalty(Message):
    """From where on a completion is too long, for `length_penalty`.

    Example: `{"unit": "tokens", "start": 800, "end": 1000}`
    """

    unit: Literal["tokens", "characters"] = "tokens"
    """Tokens need `num_tokens` in every group."""
    start: int = Field(ge=0, le=10_000_000)
    """Up to this length the term is 1."""
    end: int = Field(ge=1, le=10_000_000)
    """From this length on it is 0; in between it falls linearly."""

    @model_validator(mode="after")
    def _rising(self) -> "LengthPenalty":
        if self.end <= self.start:
            raise ValueError(f"end ({self.end}) must be above start ({self.start})")
        return self


class Rubric(Message):
    """A reward: total = sum of weight * term value, from 0 to the sum of the weights.

    Example: `{"name": "mine", "terms": {"format": 1.0, "triplet_f1": 5.0}, "beta": 0.5}`
    """

    name: Name = "custom"
    similarity: str = Field(default="exact", max_length=300)
    """Of two names: `exact`, `table:FILE` or `embedding:MODEL` (docs/similarity.md)."""
    terms: dict[str, Weight] = Field(min_length=1, max_length=32)
    format_partial_credit: bool = False
    """Whether a valid graph without the tags earns half of `format`."""
    beta: float = Field(default=1.0, gt=0, le=100)
    """Of `triplet_f1`: above 1 recall counts more than precision."""
    predicate_frequency: dict[str, Annotated[float, Field(ge=1e-9, le=1e12)]] | None = Field(
        default=None, min_length=1, max_length=10_000
    )
    """How often each predicate occurs, for `predicate_balanced`."""
    length: LengthPenalty | None = None
    """For `length_penalty`."""

    @model_validator(mode="after")
    def _complete(self) -> "Rubric":
        for name in self.terms:
            if name not in TERMS:
                raise ValueError(f"no term {name[:100]!r}; terms are {', '.join(TERMS)}")
        needs = {"predicate_balanced": "predicate_frequency", "length_penalty": "length"}
        for term, field in needs.items():
            if term in self.terms and getattr(self, field) is None:
                raise ValueError(f"the term {term} needs {field}")
        return self

    def terms_of(self, task: Task) -> dict[str, float]:
        """Its terms that apply to a task, with their weights."""
        return {name: weight for name, weight in self.terms.items() if task in TERMS[name].tasks}

    def version(self, similarity_version: str) -> str:
        """Digest of what is computed, whatever its name and the order of its terms."""
        parameters = self.model_dump(mode="json", exclude={"name", "similarity", "terms"})
        if self.predicate_frequency is not None:
            parameters["predicate_frequency"] = sorted(self.frequencies().items())
        terms = sorted((name, weight, TERMS[name].formula) for name, weight in self.terms.items())
        text = json.dumps([similarity_version, terms, parameters], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def frequencies(self) -> dict[str, float]:
        """`predicate_frequency` by normalised name."""
        table = self.predicate_frequency or {}
        return {normalise_name(name): value for name, value in table.items()}


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


def rubric_for(wanted: str | dict[str, Any], task: Task) -> Rubric:
    """The rubric of `find_rubric`, where it can tell one graph of a task from another.

    Raises:
        InvalidInputError: As `find_rubric`; or no term of it is about this task's graphs.
    """
    rubric = find_rubric(wanted)
    if not set(rubric.terms_of(task)) - {"format", "length_penalty"}:
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
            message = f"no rubric {wanted[:100]!r}; rubrics are {', '.join(RUBRICS)}"
            raise InvalidInputError(f"body.rubric: {message}", [Mistake("body.rubric", message)])
        return RUBRICS[wanted]
    try:
        return Rubric.model_validate(wanted)
    except ValidationError as error:
        raise invalid_input(error.errors(), ("body", "rubric")) from error
