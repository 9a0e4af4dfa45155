"""Scores completions against their references, many at a time.

Pure: the same request gives the same rewards, whatever stands beside it. One parse and one
comparison of a completion serve every term.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from pydantic import TypeAdapter

from reward_service.credit.increments import credits_of
from reward_service.rubrics import rubric_for, rubric_version, terms_of
from reward_service.similarity.registry import Similarities
from reward_service.terms import TERMS, ComparedBatch
from scene_graph.boxes import BoxSpace
from scene_graph.cleaning import clean_columns
from scene_graph.graph import GraphColumns
from scene_graph.matching import Comparison, compare
from scene_graph.notations.elements import Elements, read_elements
from scene_graph.parsing import ParsedCompletion, parse_completion
from scene_graph.similarity import Similarity
from services.errors import InvalidInputError, TooLargeError
from services.schemas.rewards import Credit, Matched, Reward, RewardGroup, ScoredGroup, Task
from services.schemas.rubrics import Rubric

logger = logging.getLogger(__name__)

_REWARDS = TypeAdapter(list[Reward])
_PAIRS_AT_ONCE = 40_000
"""Pairs of objects and of triplets in one batch of arrays: what fits a processor's cache."""
MAX_PAIRS = 40_000_000
"""The same of a request: 20 s of scoring. The largest request of usual graphs has half of it."""


_Place = tuple[int, int]
"""A group of a request, and one of its completions."""


class _Item(NamedTuple):
    """One completion of a request."""

    group: int
    place: int
    """Among the group's completions"""
    text: str
    parsed: ParsedCompletion
    elements: Elements | None = None
    """Where they are asked for and are all of the parsed graph"""
    only_elements: bool = False
    """Whether `parsed` is not what the text says, but the graph of its elements"""


class RewardScorer:
    """A rubric made ready for a task.

    Example: `make_scorer("balanced").score(request.groups)`
    """

    def __init__(self, rubric: Rubric, task: Task, similarity: Similarity) -> None:
        self.rubric = rubric
        self.task = task
        self.rubric_version = rubric_version(rubric, similarity.version)
        self.weights = terms_of(rubric, task)
        self.max_total = sum(self.weights.values())
        self.similarity = similarity

    def score(self, groups: Sequence[RewardGroup], *, credit: bool = False) -> list[ScoredGroup]:
        """Rewards of every completion, groups and completions in the order given.

        References are cleaned by the rules for predictions (of a duplicate id the first stays), so
        that what is wrong in them can neither raise nor be matched.

        Args:
            groups: Completions with their references.
            credit: Whether to say what each element of a completion adds (`Reward.credit`).

        Raises:
            InvalidInputError: The rubric looks at tokens and a group has no `num_tokens`.
            TooLargeError: There are over `MAX_PAIRS` to compare.
        """
        self._check(groups)
        references = self._references(groups)
        rewards: dict[_Place, Reward] = {}
        credits: dict[_Place, Credit] = {}
        for items in self._batches(groups, references, rewards, credit=credit):
            batch = self._batch(items, groups, references)
            for item, reward in zip(items, self._rewards(items, batch), strict=True):
                if not item.only_elements:
                    rewards[item.group, item.place] = reward
            if credit:
                elements = [item.elements for item in items]
                found = credits_of(batch, elements, self.weights, self.rubric)
                for item, each in zip(items, found, strict=True):
                    if each is not None:
                        credits[item.group, item.place] = each
        if credit:
            for place, reward in rewards.items():
                of_it = credits.get(place) or Credit(num_objects=0, spans=[], increments=[])
                rewards[place] = reward.model_copy(update={"credit": of_it})
        return [
            ScoredGroup(
                group_id=group.group_id,
                rewards=[rewards[i, place] for place in range(len(group.completions))],
            )
            for i, group in enumerate(groups)
        ]

    def _references(self, groups: Sequence[RewardGroup]) -> list[GraphColumns]:
        """Cleaned; one line of the log says what they lost."""
        cleaned = [reference_columns(group, self.task) for group in groups]
        lost = sum((Counter(dropped) for _, dropped in cleaned), Counter[str]())
        if lost:
            names = [g.group_id for g, (_, dropped) in zip(groups, cleaned, strict=True) if dropped]
            logger.warning(
                "references of %d groups, such as %s, lost parts: %s",
                len(names),
                names[0],
                dict(lost),
            )
        return [reference for reference, _ in cleaned]

    def _check(self, groups: Sequence[RewardGroup]) -> None:
        length = self.rubric.length
        if "length_penalty" in self.weights and length is not None and length.unit == "tokens":
            for group in groups:
                if group.num_tokens is None:
                    raise InvalidInputError(
                        f"group {group.group_id!r} has no num_tokens, and length_penalty counts "
                        "tokens: send them, or use the unit characters"
                    )

    def _batches(
        self,
        groups: Sequence[RewardGroup],
        references: list[GraphColumns],
        rewards: dict[_Place, Reward],
        *,
        credit: bool,
    ) -> Iterator[list[_Item]]:
        """Completions that parse, so many at a time; the others get the lowest reward here.

        With `credit` there is a second item of a completion whose elements are another graph.
        """
        items: list[_Item] = []
        num_pairs = num_before = 0
        for i, group in enumerate(groups):
            wanted, space = references[i], BoxSpace.parse(group.box_space)
            for place, text in enumerate(group.completions):
                parsed = parse_completion(text, space, task=self.task, notation=group.notation)
                if parsed.status != "ok":
                    rewards[i, place] = self._lowest(parsed)
                item = _Item(i, place, text, parsed)
                added = self._with_elements(item, group, space) if credit else [item]
                added = [each for each in added if each.parsed.status == "ok"]
                items += added
                for each in added:
                    num_pairs += len(each.parsed.columns.ids) * len(wanted.ids)
                    num_pairs += len(each.parsed.columns.predicates) * len(wanted.predicates)
                if num_before + num_pairs > MAX_PAIRS:
                    raise TooLargeError(
                        f"completions and references have over {MAX_PAIRS} pairs of objects and "
                        "of triplets to compare; send fewer groups at a time, or fewer completions"
                    )
                if num_pairs >= _PAIRS_AT_ONCE:
                    yield items
                    items, num_before, num_pairs = [], num_before + num_pairs, 0
        if items:
            yield items

    def _with_elements(self, item: _Item, group: RewardGroup, space: BoxSpace) -> list[_Item]:
        """The completion, and once more with the graph of its elements if that is another."""
        elements = read_elements(
            item.text,
            space.scale,
            self.task,
            group.notation,
            thinking=group.require_thinking,
        )
        if item.parsed.status == "ok" and elements.columns == item.parsed.columns:
            return [item._replace(elements=elements)]
        if not elements.spans:
            return [item]
        graph = ParsedCompletion(status="ok", columns=elements.columns)
        return [item, item._replace(parsed=graph, elements=elements, only_elements=True)]

    def _rewards(self, items: list[_Item], batch: ComparedBatch) -> list[Reward]:
        values = {name: TERMS[name].function(batch, self.rubric) for name in self.weights}
        total = np.zeros(len(items))
        for name, weight in self.weights.items():
            total += weight * values[name]
        columns = [total, *values.values(), *_matched(batch.comparison)]
        rows = zip(*(column.tolist() for column in columns), strict=True)
        names = tuple(values)
        return _REWARDS.validate_python(
            [
                {
                    "total": sum_,
                    "status": "ok",
                    "breakdown": dict(zip(names, terms, strict=True)),
                    "matched": _matched_counts(objects, relationships),
                    "dropped": item.parsed.dropped,
                }
                for item, (sum_, *terms, objects, relationships) in zip(items, rows, strict=True)
            ]
        )

    def _batch(
        self, items: list[_Item], groups: Sequence[RewardGroup], references: list[GraphColumns]
    ) -> ComparedBatch:
        first, last = items[0].group, items[-1].group + 1
        comparison = compare(
            [item.parsed.columns for item in items],
            references[first:last],
            np.array([item.group - first for item in items]),
            self.similarity,
            boxes=self.task != "cls",
        )
        tagged, num_tokens = [], []
        for item in items:
            group = groups[item.group]
            thinking = item.parsed.has_think_tags or not group.require_thinking
            tagged.append(item.parsed.has_answer_tags and thinking)
            num_tokens.append(group.num_tokens[item.place] if group.num_tokens else 0)
        return ComparedBatch(
            task=self.task,
            comparison=comparison,
            tagged=np.array(tagged),
            clean=np.array([not item.parsed.dropped for item in items]),
            num_characters=np.array([len(item.text) for item in items]),
            num_tokens=np.array(num_tokens),
            predicted=[item.parsed.columns for item in items],
            references=references[first:last],
            group_ids=[group.group_id for group in groups[first:last]],
        )

    def _lowest(self, parsed: ParsedCompletion) -> Reward:
        """The reward of a completion that gives no graph."""
        return Reward(
            total=0.0,
            status=parsed.status,
            breakdown=dict.fromkeys(self.weights, 0.0),
            matched=_matched_counts(0, 0),
            truncated=parsed.truncated,
        )


def make_scorer(
    wanted: str | dict[str, Any], task: Task = "sgg", similarities: Similarities | None = None
) -> RewardScorer:
    """A scorer for a rubric's name, or a rubric in full.

    Args:
        wanted: As in `RewardRequest.rubric`.
        task: As in `RewardRequest.task`.
        similarities: Where the rubric's similarity is found; without them only `exact` is.

    Raises:
        InvalidInputError: The rubric or its similarity is unknown or wrong, or the rubric says
            nothing about this task's graphs.
    """
    rubric = rubric_for(wanted, task)
    return RewardScorer(rubric, task, (similarities or Similarities()).get(rubric.similarity))


def reference_columns(
    group: RewardGroup, task: Task = "sgg"
) -> tuple[GraphColumns, dict[str, int]]:
    """A group's cleaned reference, and what was dropped from it by reason."""
    reference = group.reference
    return clean_columns(reference.objects, reference.relationships, group.image_size, task)


@lru_cache(maxsize=4096)
def _matched_counts(objects: int, relationships: int) -> Matched:
    return Matched(objects=objects, relationships=relationships)


def _matched(c: Comparison) -> tuple[np.ndarray, np.ndarray]:
    """[B] matched objects with an equal name and IoU >= 0.5, and hit triplets, one-to-one."""
    relationships = c.per_graph(c.triplets.owner[c.assigned_hits]).astype(np.int64)
    if c.pairs is None:
        return np.zeros_like(relationships), relationships
    good = c.pairs.matched[(c.pairs.same_name & c.pairs.overlap)[c.pairs.matched]]
    objects = c.per_graph(c.predicted.object_graph[c.pairs.predicted[good]]).astype(np.int64)
    return objects, relationships
