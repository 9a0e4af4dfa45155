"""The same rewards as a reward function of TRL's `GRPOTrainer`.

    from reward_service.trl.reward import scene_graph_reward

    GRPOTrainer(model, reward_funcs=[scene_graph_reward], train_dataset=dataset, args=config)

| column of the dataset | holds |
|---|---|
| `objects` | `[{"id": "man.1", "bbox": [x1, y1, x2, y2]}]` in pixels of the image, or as JSON |
| `relationships` | `[{"subject": "man.1", "predicate": "on", "object": "hat.2"}]`, or as JSON |
| `image_size`, or `width` and `height`, or `image`, or `images` | the image or its size |
| `box_space` | optional: what completions' boxes are in, where images differ in it |

The task `det` needs no relationships; `cls` needs neither objects nor a size. A row whose reference
is None gets the reward None: TRL leaves it to its other reward functions. Qwen2.5-VL writes pixels
of the resized image: make its `box_space` column with `scene_graph.boxes.model_box_space`.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from statistics import fmean
from typing import Any

from pydantic import TypeAdapter, ValidationError

from reward_service.scoring import make_scorer
from reward_service.similarity.registry import Similarities
from reward_service.trl.columns import ReferenceRow, check_columns, read_row, reward_group
from services.errors import InvalidInputError
from services.http.problems import invalid_input
from services.schemas.rewards import BoxSpaceName, Notation, Reward, RewardGroup, Task

logger = logging.getLogger(__name__)

_GROUP_SIZE = 256
"""What a `RewardGroup` holds at most."""

LogMetric = Callable[[str, float], None]
LogExtra = Callable[[str, list[Any]], None]


class SceneGraphReward:
    """A reward function: the total of a rubric, or one of its terms.

    Example: `SceneGraphReward("r1-soft", box_space="relative_1")`. With `term` each term is a
    reward function of its own, which TRL weighs and logs:
    `[SceneGraphReward(term="node_box"), SceneGraphReward(term="triplet_f1")]`.
    """

    __name__: str
    """What TRL logs it as: `scene_graph_` and the name of the rubric or the term."""

    def __init__(
        self,
        rubric: str | dict[str, Any] = "balanced",
        task: Task = "sgg",
        box_space: str = "relative_1000",
        *,
        term: str | None = None,
        require_thinking: bool = False,
        notation: Notation = "json",
        similarities: Similarities | None = None,
    ) -> None:
        """Make the rubric ready.

        Args:
            rubric: Its name, or a rubric in full.
            task: What completions are asked for.
            box_space: What their boxes are in; the dataset's column comes before it.
            term: The reward is this term of the rubric alone, 0..1.
            require_thinking: Whether the prompt asks for `<think>…</think>`.
            notation: What the prompt asks to write: `json` or `compact`.
            similarities: Where the rubric's similarity is found; without them only `exact` is.

        Raises:
            InvalidInputError: The rubric, the term or the space is unknown or wrong.
        """
        self._scorer = make_scorer(rubric, task, similarities)
        if term is not None and term not in self._scorer.weights:
            terms = ", ".join(self._scorer.weights)
            raise InvalidInputError(f"the rubric has no term {term!r}; its terms are {terms}")
        try:
            self._box_space = TypeAdapter(BoxSpaceName).validate_python(box_space)
        except ValidationError as error:
            raise invalid_input(error.errors(), ("box_space",)) from error
        self._term = term
        self._require_thinking = require_thinking
        self._notation = notation
        self._has_scored = False
        self.__name__ = f"scene_graph_{term or self._scorer.rubric.name}"

    def __call__(
        self,
        completions: Sequence[str | Sequence[Mapping[str, Any]]],
        completion_ids: Sequence[Sequence[int]] | None = None,
        log_metric: LogMetric | None = None,
        log_extra: LogExtra | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """Rewards of N completions. TRL names all arguments.

        Args:
            completions: [N] texts, or conversations whose last message is the answer.
            completion_ids: [N] tokens, for rubrics that look at their number.
            log_metric: Gets the mean of each term, and the share of completions that failed.
            log_extra: Gets the status of each completion.
            columns: Those of the dataset, and whatever else TRL passes.

        Returns:
            [N] rewards; None for a row without a reference, or with a malformed one (logged).

        Raises:
            InvalidInputError: A column is missing, or all rows up to now are malformed.
        """
        task = self._scorer.task
        check_columns(columns, task)
        texts = [_text(completion) for completion in completions]
        num_tokens = None if completion_ids is None else [len(ids) for ids in completion_ids]
        rows = [read_row(columns, i, task, self._box_space) for i in range(len(texts))]
        groups, members = self._groups(rows, texts, num_tokens)
        rewards: list[Reward | None] = [None] * len(texts)
        for places, scored in zip(members, self._scorer.score(groups), strict=True):
            for place, reward in zip(places, scored.rewards, strict=True):
                rewards[place] = reward
        if self._term is None:
            self._log(rewards, log_metric, log_extra)
        return [None if reward is None else self._value(reward) for reward in rewards]

    def _groups(
        self, rows: list[ReferenceRow | None], texts: list[str], num_tokens: list[int] | None
    ) -> tuple[list[RewardGroup], list[list[int]]]:
        """Neighbours with equal references as one group, and where its completions stand."""
        groups, members, mistakes = [], [], []
        keys = groupby(range(len(rows)), key=lambda i: (i // _GROUP_SIZE, rows[i]))
        for (_, row), found in keys:
            places = [*found]
            if row is None:
                continue
            counts = None if num_tokens is None else [num_tokens[i] for i in places]
            try:
                group = reward_group(
                    row,
                    [texts[i] for i in places],
                    counts,
                    require_thinking=self._require_thinking,
                    notation=self._notation,
                )
            except InvalidInputError as error:
                logger.warning("no reward for a row of the dataset: %s", error.message)
                mistakes.append(error)
                continue
            groups.append(group)
            members.append(places)
        if mistakes and not groups and not self._has_scored:
            raise mistakes[0]  # not one bad row, but a dataset of another layout
        self._has_scored = self._has_scored or bool(groups)
        return groups, members

    def _value(self, reward: Reward) -> float:
        return reward.total if self._term is None else reward.breakdown[self._term]

    def _log(
        self,
        rewards: Sequence[Reward | None],
        log_metric: LogMetric | None,
        log_extra: LogExtra | None,
    ) -> None:
        scored = [reward for reward in rewards if reward is not None]
        if log_metric and scored:
            for term in self._scorer.weights:
                log_metric(f"{self.__name__}/{term}", fmean(r.breakdown[term] for r in scored))
            log_metric(f"{self.__name__}/failed", fmean(r.status != "ok" for r in scored))
        if log_extra:
            statuses = [None if reward is None else reward.status for reward in rewards]
            log_extra(f"{self.__name__}_status", statuses)


def _text(completion: str | Sequence[Mapping[str, Any]]) -> str:
    """What the model wrote; of a conversation the last message."""
    if isinstance(completion, str):
        return completion
    content = completion[-1]["content"] if completion else ""
    if isinstance(content, str):
        return content
    return "".join(part.get("text") or "" for part in content or ())


scene_graph_reward = SceneGraphReward()
"""With the rubric `balanced`, the task `sgg` and boxes in `relative_1000`."""
