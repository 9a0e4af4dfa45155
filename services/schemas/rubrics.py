"""`GET /v1/rubrics`: what a reward can consist of."""

from typing import Any

from services.schemas.common import Message
from services.schemas.rewards import Task


class TermDescription(Message):
    """A term that rubrics can weigh."""

    formula: str
    """Its value, in 0..1."""
    tasks: list[Task]
    """Those that it applies to; for others it is left out of breakdown and total."""


class RubricDescription(Message):
    """A rubric that ships."""

    rubric: dict[str, Any]
    """In full, as a request may send it: name, similarity, weights of terms, parameters."""
    rubric_version: str
    formulas: dict[str, str]
    """Of its terms."""
    max_total: dict[Task, float]
    """Highest total by task; tasks that it says nothing about are missing."""


class RubricList(Message):
    """Answer of `GET /v1/rubrics`."""

    rubrics: list[RubricDescription]
    terms: dict[str, TermDescription]
    """All that a rubric of one's own can weigh."""
