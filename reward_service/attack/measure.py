"""What answers earn under a rubric, and what they are worth: triplet F1 of the evaluation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from reward_service.scoring import RewardScorer
from scene_graph.boxes import BoxSpace
from scene_graph.graph import SceneGraph, SceneObject
from scene_graph.metrics.heldout_metrics import image_graph
from scene_graph.metrics.strict import strict
from scene_graph.metrics.table import ImageGraph, tabulate
from scene_graph.notations.notation import NOTATIONS
from scene_graph.parsing import parse_completion
from scene_graph.similarity import Floats
from services.schemas.rewards import (
    ReferenceGraph,
    ReferenceObject,
    ReferenceRelationship,
    Reward,
    RewardGroup,
)

BOX_SPACE = BoxSpace.parse("relative_1000")
CHARACTERS_PER_TOKEN = 2.4
"""About what answers in JSON have with Qwen's vocabulary, for `length_penalty` by tokens"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """An annotated image.

    Example: `Scene(image_id="7", width=640, height=480, graph=graph)`
    """

    image_id: str
    width: int
    """Pixels"""
    height: int
    graph: SceneGraph
    """Names normalised, boxes in fractions"""
    picture: bytes = b""
    """The encoded file, for drawings; or nothing"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one answer for each of B scenes earns and is worth."""

    rewards: list[Reward]
    """[B]"""
    totals: Floats
    """[B] 0..1: shares of the rubric's highest total"""
    f1: Floats
    """[B] triplet F1, 0..1"""


class Court:
    """Scores answers about a set of scenes, as a model would have written them."""

    def __init__(self, scorer: RewardScorer, scenes: Sequence[Scene]) -> None:
        """Make the scenes' references ready.

        Args:
            scorer: A rubric, for the task `sgg`.
            scenes: With at least one triplet each.
        """
        self.scorer = scorer
        self.scenes = scenes
        self._groups = [_group(scene) for scene in scenes]
        self._references = [image_graph(scene.graph) for scene in scenes]

    def judge(self, answers: Sequence[SceneGraph]) -> Outcome:
        """[B] answers, boxes in fractions, one a scene."""
        texts = [_text(answer) for answer in answers]
        groups = [
            group.model_copy(
                update={
                    "completions": [text],
                    "num_tokens": [round(len(text) / CHARACTERS_PER_TOKEN)],
                }
            )
            for group, text in zip(self._groups, texts, strict=True)
        ]
        rewards = [group.rewards[0] for group in self.scorer.score(groups)]
        totals = np.array([reward.total for reward in rewards]) / self.scorer.max_total
        return Outcome(rewards=rewards, totals=totals, f1=self._f1(texts))

    def _f1(self, texts: Sequence[str]) -> Floats:
        parsed = [parse_completion(text, BOX_SPACE) for text in texts]
        predicted = [
            image_graph(one.columns.to_graph()) if one.status == "ok" else ImageGraph()
            for one in parsed
        ]
        return strict(*tabulate(predicted, self._references)).by_image("triplet_f1")


def as_written(answer: SceneGraph) -> SceneGraph:
    """An answer with its boxes rounded as its text has them: in thousandths."""
    return _with_sides(answer, lambda side: round(side, 3))


def _text(answer: SceneGraph) -> str:
    thousandths = _with_sides(answer, lambda side: round(1000 * side))
    return f"<answer>{NOTATIONS['json'].write(thousandths, 'sgg')}</answer>"


def _with_sides(answer: SceneGraph, change: Callable[[float], float]) -> SceneGraph:
    objects = (
        SceneObject(id=item.id, bbox=tuple(change(side) for side in item.bbox))  # type: ignore[arg-type]
        for item in answer.objects
    )
    return replace(answer, objects=tuple(objects))


def _group(scene: Scene) -> RewardGroup:
    graph = scene.graph.scaled(scene.width, scene.height)
    return RewardGroup(
        group_id=scene.image_id,
        image_size=(scene.width, scene.height),
        box_space=str(BOX_SPACE),
        reference=ReferenceGraph(
            objects=[ReferenceObject(id=o.id, bbox=o.bbox) for o in graph.objects],
            relationships=[
                ReferenceRelationship(subject=e.subject, predicate=e.predicate, object=e.object)
                for e in graph.relationships
            ],
        ),
        completions=[""],
    )
