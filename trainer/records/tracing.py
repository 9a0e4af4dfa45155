"""A trace for each group, from asking to training: sampling and scoring hang below it."""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from statistics import fmean
from typing import Any

from services.schemas.groups import TrainGroup
from services.schemas.prompts import PromptGroup
from services.telemetry import OpenSpan, Tracing
from trainer.types import Outcome

SERVICE = "sgg-rl trainer"
"""The name that all spans of a trainer carry."""


class GroupTraces:
    """The spans of groups that are open, by group id: a group asked for again stays in its trace.

    Args:
        tracing: The trainer's; where it is off, nothing is kept.
    """

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing
        self._spans: dict[str, OpenSpan] = {}

    def begin(self, prompt: PromptGroup) -> PromptGroup:
        """A group is about to be asked for; its prompt, with the name of its span."""
        span = self._tracing.begin("group", group_id=prompt.group_id, epoch=prompt.epoch)
        if span is None:
            return prompt
        self._spans[prompt.group_id] = span
        return prompt.model_copy(update={"traceparent": span.traceparent})

    def scoring(self, prompts: Sequence[PromptGroup]) -> AbstractContextManager[Any]:
        """The span of one request for the rewards of several groups.

        It is in the trace of the first, with links to the others.
        """
        names = [prompt.traceparent for prompt in prompts if prompt.traceparent]
        return self._tracing.span("score groups", parent=names[0] if names else None, links=names)

    def end(self, groups: Iterable[TrainGroup], outcome: Outcome) -> None:
        """A batch is formed: what became of groups since the last one."""
        for group in groups:
            rewards = [reward.total for reward in group.rewards]
            self._end(group.rollout.group_id, outcome="trained", reward_mean=fmean(rewards))
        for name in outcome.replaced:
            self._end(name, outcome="replaced")
        for name in outcome.dead:
            self._end(name, outcome="dead")

    def close(self) -> None:
        """End what is open, and send it."""
        for name in list(self._spans):
            self._end(name, outcome="left")
        self._tracing.close()

    def _end(self, name: str, **attributes: str | float) -> None:
        if (span := self._spans.pop(name, None)) is not None:
            span.end(**attributes)
