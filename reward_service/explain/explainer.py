"""Where a score comes from: what was read, dropped, hit and missed in one completion."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from reward_service.explain.dropped_parts import (
    DroppedPart,
    Failure,
    answer_lists,
    dropped_parts,
    find_failure,
)
from reward_service.explain.verdicts import (
    MissedObject,
    MissedTriplet,
    ObjectLine,
    TripletLine,
    Verdicts,
    boxes_of,
    names_of_triplets,
)
from reward_service.scoring import make_scorer, reference_columns
from reward_service.similarity.registry import Similarities
from scene_graph.boxes import BoxSpace
from scene_graph.notations.answer import NotationName
from scene_graph.parsing import ParsedCompletion, parse_completion
from scene_graph.similarity import Similarity
from services.schemas.rewards import Reward, RewardGroup, Status, Task


@dataclass(frozen=True, slots=True, kw_only=True)
class TermLine:
    """One term of the total."""

    name: str
    value: float
    """0..1"""
    weight: float
    contribution: float
    """Their product"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """All there is to say about one completion. Names are normalised."""

    task: Task
    notation: NotationName
    status: Status
    truncated: bool
    failure: Failure | None
    """Where the status is not `ok`"""
    total: float | None = None
    """None without a reference, as is `max_total`"""
    max_total: float | None = None
    terms: list[TermLine] = field(default_factory=list)
    format_faults: list[str]
    """What keeps the term `format` from 1"""
    objects: list[ObjectLine]
    """None for the task `cls`"""
    missed_objects: list[MissedObject] = field(default_factory=list)
    triplets: list[TripletLine]
    missed_triplets: list[MissedTriplet] = field(default_factory=list)
    dropped: list[DroppedPart]
    reference_dropped: list[DroppedPart] = field(default_factory=list)


class Explainer:
    """Scores as a `RewardScorer` does, and says why.

    Example: `Explainer("balanced").explain(group)[0].objects[2].verdict`
    """

    def __init__(
        self,
        rubric: str | dict[str, Any],
        task: Task = "sgg",
        similarities: Similarities | None = None,
    ) -> None:
        """Take what `make_scorer` takes.

        Raises:
            InvalidInputError: As `make_scorer` does.
        """
        self.scorer = make_scorer(rubric, task, similarities)

    def explain(self, group: RewardGroup) -> list[Explanation]:
        """An explanation for each completion of a group.

        Raises:
            InvalidInputError: The rubric looks at tokens and the group has no `num_tokens`.
        """
        rewards = self.scorer.score([group])[0].rewards
        scorer = self.scorer
        return [
            explain_reward(
                text, group, reward, scorer.weights, similarity=scorer.similarity, task=scorer.task
            )
            for text, reward in zip(group.completions, rewards, strict=True)
        ]


def explain_reward(
    text: str,
    group: RewardGroup,
    reward: Reward,
    weights: Mapping[str, float],
    *,
    similarity: Similarity,
    task: Task = "sgg",
) -> Explanation:
    """Why a completion earned the reward that it has.

    Args:
        text: The completion.
        group: Has the reference that it is held against.
        reward: The completion's.
        weights: Of the terms that the total adds.
        similarity: How alike the rubric finds names.
        task: What was asked for.
    """
    parsed = parse_completion(
        text, BoxSpace.parse(group.box_space), task=task, notation=group.notation
    )
    reference = group.reference.model_dump(mode="json")
    columns, _ = reference_columns(group, task)
    verdicts = Verdicts(parsed.columns, columns, similarity, task)
    return Explanation(
        **_reading(text, parsed, task, require_thinking=group.require_thinking),
        total=reward.total,
        max_total=sum(weights.values()),
        terms=term_lines(reward, weights),
        objects=verdicts.objects(),
        missed_objects=verdicts.missed_objects(),
        triplets=verdicts.triplets(),
        missed_triplets=verdicts.missed_triplets(),
        reference_dropped=dropped_parts(reference["objects"], reference["relationships"], task),
    )


def term_lines(reward: Reward, weights: Mapping[str, float]) -> list[TermLine]:
    """A reward's terms with what each adds; a term that is not in the weights adds nothing."""
    return [
        TermLine(name=name, value=value, weight=weight, contribution=weight * value)
        for name, value in reward.breakdown.items()
        for weight in [weights.get(name, 0.0)]
    ]


def explain_text(
    text: str,
    box_space: BoxSpace,
    task: Task = "sgg",
    *,
    require_thinking: bool = False,
    notation: NotationName = "json",
) -> Explanation:
    """What can be said without a reference: what was read, and what was dropped."""
    parsed = parse_completion(text, box_space, task=task, notation=notation)
    ids = [] if task == "cls" else parsed.columns.ids
    return Explanation(
        **_reading(text, parsed, task, require_thinking=require_thinking),
        objects=[
            ObjectLine(id=name, bbox=box)
            for name, box in zip(ids, boxes_of(parsed.columns), strict=True)
        ],
        triplets=[TripletLine(triplet=names) for names in names_of_triplets(parsed.columns)],
    )


def _reading(
    text: str, parsed: ParsedCompletion, task: Task, *, require_thinking: bool
) -> dict[str, Any]:
    """The fields of an `Explanation` that need no reference."""
    objects, relationships = (
        answer_lists(text, task, parsed.notation) if parsed.status == "ok" else ([], [])
    )
    return {
        "task": task,
        "notation": parsed.notation,
        "status": parsed.status,
        "truncated": parsed.truncated,
        "failure": find_failure(text, parsed, task),
        "format_faults": list(_format_faults(parsed, task, require_thinking)),
        "dropped": dropped_parts(objects, relationships, task, parsed.notation),
    }


def _format_faults(parsed: ParsedCompletion, task: Task, require_thinking: bool) -> Iterator[str]:
    if parsed.status != "ok":
        yield f"the status is {parsed.status}"
        return
    if not parsed.has_answer_tags:
        yield "the text is not just <answer>...</answer>"
    if require_thinking and not parsed.has_think_tags:
        yield "it does not begin with <think>...</think>"
    if num := sum(parsed.dropped.values()):
        yield f"{num} part{'s were' if num > 1 else ' was'} dropped"
    if not (parsed.columns.predicates if task == "cls" else parsed.columns.ids):
        yield f"the graph has no {'relationships' if task == 'cls' else 'objects'}"
