"""A rollout server as the simulation sees it: sequences that share one GPU's tokens a second."""

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import simpy

from planning.simulation.rates import Rates

_ROUNDING = 1e-6
"""Tokens: sequences that end this close together end at once."""


@dataclass(slots=True, eq=False)
class Group:
    """A group of completions on its way from being asked for to being trained on."""

    position: int
    lengths: tuple[int, ...]
    """Tokens of each completion."""
    attempt: int = 0
    """How often it was asked for again."""
    version: int = -1
    """The version that its first token was sampled with; -1 before."""
    left: int = 0
    """Completions that are not finished."""

    @property
    def work_id(self) -> str:
        """Identity on the queue, as `PromptGroup.work_id`."""
        return f"{self.position}#0.{self.attempt}"


class SampledHere:
    """One server with one GPU.

    A sequence among n gets `tokens_per_s / (n + half_sequences)` tokens a second, so that all get
    `tokens_per_s * n / (n + half_sequences)`: what a decoding step that reads all weights once, and
    then works for each sequence, comes to.

    Args:
        env: The simulation's.
        rates: The pace of one GPU.
        max_sequences: Sequences that it samples at the same time; others wait.
        ended: Called with a group whose last completion has ended.
    """

    def __init__(
        self,
        env: simpy.Environment,
        rates: Rates,
        max_sequences: int,
        ended: Callable[[Group], None],
    ) -> None:
        self._env = env
        self._rates = rates
        self._max_sequences = max_sequences
        self._ended = ended
        self._running: list[tuple[float, int, float, Group]] = []
        """End and start, both in `_progress`; a heap."""
        self._waiting: deque[tuple[int, Group]] = deque()
        self._number = 0
        self._progress = 0.0
        """Tokens that a sequence would have which runs since the beginning."""
        self._since = 0.0
        self._stall_s = 0.0
        """Work on prompts that is left before any sequence goes on."""
        self._next_end: simpy.Event | None = None
        """The end of a sequence, if nothing changes until then."""
        self._paused = False
        self._share = 1.0
        self.version = 0
        self.num_groups = 0
        """Leased."""
        self.group_ended = env.event()
        """Happens when any group ends."""
        self.busy_s = 0.0
        """Seconds in which something was sampled."""

    @property
    def is_busy(self) -> bool:
        """Whether anything is being sampled."""
        return bool(self._running)

    def take(self, group: Group) -> None:
        """Begin a group."""
        self.num_groups += 1
        self._advance()
        group.left = len(group.lengths)
        self._stall_s += self._rates.prompt_s
        self._waiting.extend((length, group) for length in group.lengths)
        self._fill()
        self._expect_end()

    def pause(self) -> None:
        """Stop for a commit; what is running is kept."""
        self._advance()
        self._paused = True
        self._expect_end()

    def resume(self, version: int) -> None:
        """Go on with another version: running sequences are prefilled again."""
        self._advance()
        self._paused = False
        self.version = version
        sampled = sum(self._progress - start for _, _, start, _ in self._running)
        prompts = len({id(group) for _, _, _, group in self._running})
        self._stall_s += prompts * self._rates.prompt_s + sampled * self._rates.prefill_token_s
        self._expect_end()

    def share(self, share: float) -> None:
        """The part of the GPU's time that sampling gets from now on, over 0 and at most 1."""
        self._advance()
        self._share = share
        self._expect_end()

    def read_busy_s(self) -> float:
        """`busy_s` up to now."""
        self._advance()
        return self.busy_s

    def _fill(self) -> None:
        while self._waiting and len(self._running) < self._max_sequences:
            length, group = self._waiting.popleft()
            if group.version < 0:
                group.version = self.version
            self._number += 1
            place = (self._progress + length, self._number, self._progress, group)
            heapq.heappush(self._running, place)

    def _pace(self) -> float:
        """Tokens a second of one sequence."""
        rates = self._rates
        return self._share * rates.tokens_per_s / (len(self._running) + rates.half_sequences)

    def _advance(self) -> None:
        passed = self._env.now - self._since
        self._since = self._env.now
        if self._paused or not self._running:
            return
        self.busy_s += passed
        on_prompts = min(passed, self._stall_s / self._share)
        self._stall_s -= on_prompts * self._share
        self._progress += (passed - on_prompts) * self._pace()

    def _expect_end(self) -> None:
        if self._paused or not self._running:
            self._next_end = None
            return
        tokens = self._running[0][0] - self._progress
        seconds = self._stall_s / self._share + max(0.0, tokens) / self._pace()
        self._next_end = self._env.timeout(seconds)
        self._next_end.callbacks.append(self._end)

    def _end(self, expected: simpy.Event) -> None:
        if expected is not self._next_end:
            return
        self._advance()
        ended = []
        while self._running and self._running[0][0] <= self._progress + _ROUNDING:
            group = heapq.heappop(self._running)[3]
            group.left -= 1
            if not group.left:
                ended.append(group)
        self._fill()
        self._expect_end()
        for group in ended:
            self.num_groups -= 1
            self._ended(group)
        if ended:
            self.group_ended.succeed()
            self.group_ended = self._env.event()
