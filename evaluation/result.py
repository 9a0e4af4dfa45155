"""What an evaluation finds: `metrics.json`, and what the report draws.

`metrics.json` is `EvaluationResult` as JSON; `docs/evaluation.md` explains every number.
"""

from dataclasses import dataclass, field
from typing import Literal

from scene_graph.cleaning import Task
from scene_graph.metrics.ratio import RatioMetric

Protocol = Literal["strict", "sgb", "r1-sgg"]
PROTOCOLS: tuple[Protocol, ...] = ("strict", "sgb", "r1-sgg")

AP_METRICS = ("ap", "ap50", "ap75", "coco_ap", "coco_ap50", "coco_ap75")
"""Metrics of objects that are no means over images, so they have no intervals"""

_SHOWN = ("strict recall@100", "strict triplet_recall", "object f1")
"""The number that a result is known by; the first that its task has"""

Group = Literal["head", "body", "tail"]

Verdict = Literal["hit", "miss", "hallucination"]
"""A reference item is a hit or a miss, a predicted one a hit or a hallucination."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Something wrong in the input, which did not end the evaluation."""

    kind: str
    """Such as `unknown_image`: all are in `docs/evaluation.md`"""
    file: str
    line: int | None
    """From 1; None where the file has no lines"""
    image_id: str | None
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PredicateRow:
    """One predicate in the report's table."""

    predicate: str
    group: Group
    num_training: int | None
    """Times in the training split, where one was given"""
    num_reference: int
    num_predicted: int
    recall: dict[str, float]
    """By protocol, at K = 100; over all predictions in `r1-sgg`"""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnObject:
    """A box of the browser."""

    name: str
    bbox: tuple[float, float, float, float] | None
    """Pixels of the image; None where a triplet of the task `cls` names it without a box"""
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnRelation:
    """An arrow of the browser, between objects by index."""

    subject: int
    predicate: str
    object: int
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnGraph:
    """One side of the browser."""

    objects: list[DrawnObject]
    relations: list[DrawnRelation]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageResult:
    """One image: a line of `images.jsonl`, and a page of the browser."""

    image_id: str
    width: int
    height: int
    status: str
    """`ok`, `no_prediction`, or the reason of a failure: a status of `scene_graph.parsing`, or
    `truncated` for an answer that stops inside its JSON"""
    text: str | None
    num_tokens: int | None
    recall: float | None
    """strict R@100, of the task `cls` triplet recall; None where there is nothing to find"""
    f1: float | None
    """strict triplet F1"""
    reference: DrawnGraph
    predicted: DrawnGraph


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreBin:
    """Predictions of neighbouring scores."""

    num_predicted: int
    score: float
    """Their mean"""
    share_right: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Confidence:
    """How far the scores of predicted triplets, or objects, say which of them hit in `strict`."""

    num_predicted: int
    share_right: float
    calibration_error: float | None
    """Mean distance of a score from the share that is right among predictions of such scores, in
    0..1; None where scores are no shares"""
    risk_coverage_area: float
    """Mean share of wrong ones among the best K by score, over all K; `1 - share_right` where
    scores say nothing, less where they do"""
    bins: list[ScoreBin]
    """By rising score, of as many predictions each"""
    risk_at_coverage: list[tuple[float, float]]
    """The share of wrong ones among the best by score, for rising shares of predictions"""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationResult:
    """All of an evaluation. What comes before `metrics` is `metrics.json`."""

    split: str
    name: str
    """Name of the predictions, for headings: such as `mine/inference`"""
    num_images: int
    """In the reference"""
    task: Task = "sgg"
    """`det` has no protocols and no predicates, `cls` only triplets in `strict`, and no objects"""
    protocols: dict[Protocol, dict[str, float | None]]
    """Metric to value in 0..1 (`recall@20`, `mean_recall@50`, `zero_shot_recall@100`,
    `ng_recall@20`, `triplet_f1`, …) and `num_images`, those that count; None where undefined"""
    intervals: dict[Protocol, dict[str, tuple[float, float]]]
    """95 % by bootstrap over images"""
    objects: dict[str, float | None]
    """`AP_METRICS`, `recall`, `precision`, `f1`, `mean_iou`"""
    object_intervals: dict[str, tuple[float, float]]
    answers: dict[str, float | None]
    """`failure_rate`, `unconstrained_failure_rate`, `relations_per_image`, `objects_per_image`,
    `tokens_per_image` (over those that say it), `reference_relations_per_image`,
    `reference_objects_per_image`, `duplicate_objects`, `duplicate_relations` (shares of all that is
    predicted); None if unknown"""
    failures: dict[str, int]
    """Images without a graph, by reason; `no_prediction` is one"""
    predicates: list[PredicateRow]
    groups: dict[str, dict[str, float]]
    """`head`, `body`, `tail`: the mean of `predicates`' recall by protocol"""
    mapping: dict[str, dict[str, float]]
    """`objects`, `predicates`: share of predicted names mapped by step (`exact`, `alias`,
    `embedding`, `unmapped`); empty without a vocabulary"""
    settings: dict[str, object]
    """How the predictions were made (model, sampling, constraint), as `sgg-rl infer` wrote it"""
    problem_counts: dict[str, int]
    confidence: dict[str, Confidence] = field(default_factory=dict)
    """`triplets`, `objects`: each where its predictions have scores"""
    answer_intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Intervals of `answers`"""
    inputs: dict[str, str | None] = field(default_factory=dict)
    """What was read: `predictions`, `reference`, `train`, `vocabulary`, `embedding_model`"""
    problems: list[Problem] = field(default_factory=list)
    """The first of each kind"""
    metrics: dict[str, dict[str, RatioMetric]] = field(default_factory=dict)
    """By protocol, `objects` and `answers`: for the bootstrap; in `ratios.npz`"""
    class_names: list[str] = field(default_factory=list)
    """Names of the classes of every mean recall in `metrics`; in `ratios.npz`"""
    images: list[ImageResult] = field(default_factory=list)
    """In reference order; in `images.jsonl`"""

    def __repr__(self) -> str:
        """One line: all of it is thousands of numbers."""
        values = {f"{p} {m}": v for p, found in self.protocols.items() for m, v in found.items()}
        values |= {f"object {name}": value for name, value in self.objects.items()}
        name = next((n for n in _SHOWN if values.get(n) is not None), None)
        shown = f", {name} {values[name]:.3f}" if name else ""
        return (
            f"<EvaluationResult {self.name!r} on {self.split!r}: {self.num_images} images{shown}>"
        )
