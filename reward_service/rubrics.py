"""Rubrics: which terms a reward consists of, and how much each weighs."""

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi.exceptions import RequestValidationError
from pydantic import Field, ValidationError, field_validator

from reward_service.terms import TERMS
from services.schemas.common import Message, Name

Weight = Annotated[float, Field(gt=0, le=1000)]


class Rubric(Message):
    """A reward: total = sum of weight * term value, from 0 to the sum of the weights.

    Example: `{"name": "mine", "terms": {"format": 1.0, "edge_hard": 5.0}}`
    """

    name: Name = "custom"
    similarity: Literal["exact"] = "exact"
    """Of two names: 1 if equal after normalising, else 0."""
    terms: dict[str, Weight] = Field(min_length=1, max_length=32)

    @field_validator("terms")
    @classmethod
    def _known(cls, terms: dict[str, float]) -> dict[str, float]:
        for name in terms:
            if name not in TERMS:
                raise ValueError(f"no term {name[:100]!r}; terms are {', '.join(TERMS)}")
        return terms

    @property
    def rubric_version(self) -> str:
        """Digest of what is computed, whatever its name and the order of its terms."""
        terms = sorted((name, weight, TERMS[name].formula) for name, weight in self.terms.items())
        text = json.dumps([self.similarity, terms])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


RUBRICS: Mapping[str, Rubric] = {
    rubric.name: rubric
    for rubric in (
        Rubric(
            name="r1-soft",
            terms={"format": 1.0, "node_category": 2.0, "node_box": 2.0, "edge": 5.0},
        ),
        Rubric(name="r1-hard", terms={"format": 1.0, "edge_hard": 5.0}),
    )
}


def find_rubric(wanted: str | dict[str, Any]) -> Rubric:
    """The rubric that a request names, or gives in full.

    Raises:
        RequestValidationError: No rubric of this name ships, or the given one is wrong; the error
            names the path in the request's body.
    """
    if isinstance(wanted, str):
        if wanted not in RUBRICS:
            message = f"no rubric {wanted[:100]!r}; rubrics are {', '.join(RUBRICS)}"
            raise RequestValidationError([{"loc": ("body", "rubric"), "msg": message}])
        return RUBRICS[wanted]
    try:
        return Rubric.model_validate(wanted)
    except ValidationError as error:
        located = [{**e, "loc": ("body", "rubric", *e["loc"])} for e in error.errors()]
        raise RequestValidationError(located) from error
