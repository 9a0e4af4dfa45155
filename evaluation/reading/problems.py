"""What was wrong in the input of an evaluation: counted by kind, the first of each kept."""

from collections import Counter
from dataclasses import dataclass

from evaluation.result import Problem

NUM_LISTED = 20
"""Problems of each kind that are listed; the others are only counted."""


class Problems:
    """Grows while files are read; an evaluation goes on in spite of them."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._listed: dict[str, list[Problem]] = {}

    @property
    def listed(self) -> list[Problem]:
        """The first `NUM_LISTED` of each kind, kinds in alphabetical order."""
        return [problem for kind in sorted(self._listed) for problem in self._listed[kind]]

    def add(self, problem: Problem) -> None:
        """Count a problem."""
        self.counts[problem.kind] += 1
        if self.counts[problem.kind] <= NUM_LISTED:
            self._listed.setdefault(problem.kind, []).append(problem)


@dataclass(frozen=True, slots=True)
class Place:
    """Where something is wrong."""

    problems: Problems
    file: str
    line: int | None = None
    """From 1"""
    image_id: str | None = None

    def add(self, kind: str, detail: str) -> None:
        """Count a problem of this place."""
        file, line, image_id = self.file, self.line, self.image_id
        self.problems.add(
            Problem(kind=kind, file=file, line=line, image_id=image_id, detail=detail)
        )
