"""What a reward can consist of: a rubric as a request brings it, and `GET /v1/rubrics`."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from scene_graph.graph import normalise_name
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
    """How alike names are: `exact`, `table:FILE` or `embedding:MODEL` (docs/similarity.md)."""
    terms: dict[str, Weight] = Field(min_length=1, max_length=32)
    format_partial_credit: bool = False
    """Whether a valid graph without the tags earns half of `format`."""
    beta: float = Field(default=1.0, gt=0, le=100)
    """F's beta in `triplet_f1`: above 1 recall counts more than precision."""
    predicate_frequency: dict[str, Annotated[float, Field(ge=1e-9, le=1e12)]] | None = Field(
        default=None, min_length=1, max_length=10_000
    )
    """How often each predicate occurs, for `predicate_balanced`."""
    length: LengthPenalty | None = None
    """For `length_penalty`."""

    @model_validator(mode="after")
    def _complete(self) -> "Rubric":
        needs = {"predicate_balanced": "predicate_frequency", "length_penalty": "length"}
        for term, field in needs.items():
            if term in self.terms and getattr(self, field) is None:
                raise ValueError(f"the term {term} needs {field}")
        return self

    def frequencies(self) -> dict[str, float]:
        """`predicate_frequency` by normalised name."""
        table = self.predicate_frequency or {}
        return {normalise_name(name): value for name, value in table.items()}


class TermDescription(Message):
    """A term that rubrics can weigh."""

    formula: str
    """Its value, in 0..1."""
    tasks: list[Task]
    """The tasks that it applies to; breakdown and total of others lack it."""


class RubricDescription(Message):
    """A rubric that ships."""

    rubric: dict[str, Any]
    """In full, as a request may send it: name, similarity, weights of terms, parameters."""
    rubric_version: str
    formulas: dict[str, str]
    """Each term's formula."""
    max_total: dict[Task, float]
    """Highest total by task; tasks that it says nothing about are missing."""


class RubricList(Message):
    """Answer of `GET /v1/rubrics`."""

    rubrics: list[RubricDescription]
    terms: dict[str, TermDescription]
    """All that a rubric of one's own can weigh."""
