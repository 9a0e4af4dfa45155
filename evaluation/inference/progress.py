"""How far an inference is."""

import time
from collections import Counter
from dataclasses import dataclass, field

from evaluation.inference.fleet import Fleet
from evaluation.reading.lines import GraphLine


@dataclass(slots=True, kw_only=True)
class Progress:
    """The inference counts here; the view of it reads."""

    total: int
    """Images"""
    done: int = 0
    """Images with a line"""
    skipped: int = 0
    """Those of them that an earlier start has done"""
    tokens: int = 0
    """Sampled by this start"""
    statuses: Counter[str] = field(default_factory=Counter)
    """Images by status, with the skipped ones"""
    unconstrained: Counter[str] = field(default_factory=Counter)
    """Free answers, by status, of images that were asked again under a schema"""
    versions: set[int] = field(default_factory=set)
    """Oldest and newest policy version of every answer"""
    fleet: Fleet | None = None
    """While it is asked"""
    started: float | None = None
    """Monotonic seconds, when this start asked for its first image"""
    ended: float | None = None

    def count(self, line: GraphLine) -> None:
        """A line that was written."""
        self.done += 1
        self.statuses[line.status] += 1
        self.versions.update(line.policy_versions or ())
        if line.unconstrained_status is not None:
            self.unconstrained[line.unconstrained_status] += 1

    def start(self, fleet: Fleet) -> None:
        """What was counted so far is of earlier starts."""
        self.skipped, self.fleet, self.started = self.done, fleet, time.monotonic()

    def end(self) -> None:
        """The last line is written."""
        self.ended = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        """Seconds of this start."""
        if self.started is None:
            return 0.0
        return (self.ended or time.monotonic()) - self.started

    @property
    def images_per_s(self) -> float:
        """The pace of this start."""
        return (self.done - self.skipped) / max(self.elapsed_s, 1e-9)

    @property
    def tokens_per_s(self) -> float:
        """The pace of this start."""
        return self.tokens / max(self.elapsed_s, 1e-9)

    @property
    def left_s(self) -> float | None:
        """At the pace so far; None before the first image."""
        pace = self.images_per_s
        return (self.total - self.done) / pace if pace else None

    @property
    def num_failed(self) -> int:
        """Images without a graph."""
        return self.done - self.statuses["ok"]
