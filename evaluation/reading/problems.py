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

    def add(
        self, kind: str, file: str, line: int | None, image_id: str | None, detail: str
    ) -> None:
        """Count a problem; see `Problem`."""
        self.counts[kind] += 1
        if self.counts[kind] <= NUM_LISTED:
            problem = Problem(kind=kind, file=file, line=line, image_id=image_id, detail=detail)
            self._listed.setdefault(kind, []).append(problem)


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
        self.problems.add(kind, self.file, self.line, self.image_id, detail)
