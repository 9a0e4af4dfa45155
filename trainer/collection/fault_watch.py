"""Says when most answers of a step fail for one reason: nothing would be learnt, without a word."""

import logging
from collections import Counter

from scene_graph.boxes import RELATIVE_1
from scene_graph.cleaning import Task
from scene_graph.faults import CUT_SHORT, main_fault
from scene_graph.notations.answer import NotationName
from scene_graph.parsing import parse_completion
from services.schemas.groups import TrainGroup
from services.schemas.rewards import Reward

logger = logging.getLogger(__name__)

_EXAMPLE_LETTERS = 300
_LONGER = (
    "Raise sampling.max_tokens, with rollout.max_model_len, if graphs are longer than that; a "
    "model that does not end its answers learns it by SFT first"
)
_ANOTHER_FORM = (
    "The form that is read: docs/rewards.md, From text to graph; what the model is asked for: "
    "data.template; a model that has not seen the form learns it by SFT first"
)


class FaultWatch:
    """Looks at scored groups, a step's worth at a time, and logs each common reason once.

    Args:
        groups_per_step: How many groups are looked at together.
        task: The run's.
        notation: The same.
    """

    def __init__(self, groups_per_step: int, task: Task, notation: NotationName = "json") -> None:
        self._groups_per_step = groups_per_step
        self._task = task
        self._notation = notation
        self._said: set[str] = set()
        self._num_groups = 0
        self._answers: list[tuple[str | None, str]] = []
        """Those of the groups so far: each one's fault, if it has one, and its text."""

    def look(self, group: TrainGroup) -> None:
        """Take up a group; with the last of a step's worth, say what is to be said."""
        self._num_groups += 1
        for completion, reward in zip(group.rollout.completions, group.rewards, strict=True):
            self._answers.append((self._fault(completion.text, reward), completion.text))
        if self._num_groups >= self._groups_per_step:
            self._say()
            self._num_groups = 0
            self._answers.clear()

    def _fault(self, text: str, reward: Reward) -> str | None:
        if reward.status == "ok" and not reward.dropped:
            return None
        # In any space: no box is compared.
        parsed = parse_completion(text, RELATIVE_1, task=self._task, notation=self._notation)
        return main_fault(text, parsed, self._task)

    def _say(self) -> None:
        ((fault, count),) = Counter(fault for fault, _ in self._answers).most_common(1)
        if fault is None or 2 * count <= len(self._answers) or fault in self._said:
            return
        self._said.add(fault)
        logger.warning(
            "%d of %d answers of a step fail for one reason: %s. The first of them: %r. %s",
            count,
            len(self._answers),
            fault,
            dict(reversed(self._answers))[fault][:_EXAMPLE_LETTERS],
            _LONGER if fault == CUT_SHORT[self._notation] else _ANOTHER_FORM,
        )
