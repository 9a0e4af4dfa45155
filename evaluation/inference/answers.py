"""From a rollout server's answer to a line of `predictions.jsonl`."""

from collections.abc import Sequence
from statistics import fmean

import msgspec

from evaluation.inference.consensus import agreed
from evaluation.inference.scores import give_scores
from evaluation.reading.lines import GraphLine, LineObject, graph_lists
from scene_data.dataset import Sample
from scene_data.messages import box_space
from scene_graph.parsing import parse_completion
from services.schemas.rollouts import Completion
from services.settings import Settings

NOT_ASKED = ("refused", "unreadable")
"""Statuses of images that no model has seen: a server refused the prompt, or the file is broken."""


def answers_line(
    settings: Settings,
    sample: Sample,
    answers: Sequence[Completion],
    free: GraphLine | None = None,
) -> GraphLine:
    """The line of an image's answers: of what they agree on, or of the best of them.

    The best is one with a graph, then by `mean_logprob`, then the first.

    Args:
        settings: As `answered_line`.
        sample: The image.
        answers: The model's, at least one.
        free: As `answered_line`.
    """
    lines = [answered_line(settings, sample, answer, free) for answer in answers]
    if settings.evaluation.consensus > 1:
        return _consensus_line(lines)
    if len(lines) == 1:
        return lines[0]
    for line, answer in zip(lines, answers, strict=True):
        line.mean_logprob = min(fmean(answer.rollout_logprobs or [0.0]), 0.0)
    return max(lines, key=lambda line: (line.status == "ok", line.mean_logprob))


def _consensus_line(lines: Sequence[GraphLine]) -> GraphLine:
    """What the answers with a graph agree on; where none has one, the first one's failure."""
    with_graph = [line for line in lines if line.status == "ok"]
    versions = [version for line in lines for version in line.policy_versions or ()]
    tokens = sum(line.num_tokens or 0 for line in lines)
    spent = {
        "num_tokens": tokens,
        "policy_versions": (min(versions), max(versions)) if versions else None,
    }
    if not with_graph:
        return msgspec.structs.replace(lines[0], **spent)
    objects, relationships = agreed(with_graph)
    return msgspec.structs.replace(
        with_graph[0],
        objects=objects,
        relationships=relationships,
        text=None,  # that nobody wrote
        finish_reason=None,
        **spent,
    )


def answered_line(
    settings: Settings, sample: Sample, answer: Completion, free: GraphLine | None = None
) -> GraphLine:
    """The line of an image that was answered.

    Args:
        settings: The run's: what was asked, and in which space the model writes boxes.
        sample: The image.
        answer: The model's.
        free: Where the answer was sampled under a schema: the line of the free answer before it.
    """
    task, notation = settings.data.task, settings.data.notation
    space = box_space(settings.model, sample)
    parsed = parse_completion(answer.text, space, task=task, notation=notation)
    objects, relationships = graph_lists(parsed.graph, (sample.width, sample.height))
    if task == "cls":
        objects = [LineObject(item.id) for item in objects]
    versions = [span.policy_version for span in answer.policy_versions]
    line = GraphLine(
        image_id=sample.image_id,
        width=sample.width,
        height=sample.height,
        objects=objects,
        relationships=relationships,
        status=parsed.status,
        truncated=parsed.truncated,
        text=answer.text,
        num_tokens=len(answer.token_ids),
        finish_reason=answer.finish_reason,
        policy_versions=(min(versions), max(versions)) if versions else None,
        unconstrained_status=free.status if free else None,
        unconstrained_text=free.text if free else None,
    )
    if settings.evaluation.scores:
        thinking = settings.data.thinking and free is None
        give_scores(line, answer, space, task, notation, thinking=thinking)
    return line


def not_asked_line(
    image_id: str, status: str, problem: str, size: tuple[int, int] = (0, 0)
) -> GraphLine:
    """The line of an image that no model has seen.

    Args:
        image_id: The image's.
        status: One of `NOT_ASKED`.
        problem: Why.
        size: Width and height in pixels; 0 where the file is broken.
    """
    width, height = size
    return GraphLine(
        image_id=image_id,
        width=width,
        height=height,
        objects=[],
        relationships=[],
        status=status,
        problem=problem,
    )
