"""How sure a model is of each object and relationship of its answer, by the sampler's numbers.

The score of a relationship is the probability of all its tokens after what stands before them. That
of an object is the probability of those with a letter, as a detector's is of the class (Pix2Seq,
arXiv 2109.10852, does the same): a box that is a pixel off is another text, and as good.
"""

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence

from evaluation.reading.lines import GraphLine, LineObject, LineRelationship
from scene_graph.boxes import BoxSpace
from scene_graph.cleaning import Task
from scene_graph.notations.answer import NotationName, Span
from scene_graph.notations.elements import read_elements
from services.errors import InvalidInputError
from services.schemas.rollouts import Completion


def give_scores(
    line: GraphLine,
    answer: Completion,
    space: BoxSpace,
    task: Task,
    notation: NotationName,
    *,
    thinking: bool,
) -> None:
    """Set the scores of a line's objects and relationships, in 0..1.

    What is not written plainly (`read_elements`) has the geometric mean of the probabilities of the
    answer's tokens.
    The ends of a triplet of the task `cls` have no text of their own, and no score.

    Args:
        line: Of the answer.
        answer: With `token_ends`.
        space: That its boxes are written in.
        task: That it was read as.
        notation: Likewise.
        thinking: Whether the model was asked to think first.

    Raises:
        InvalidInputError: The answer does not say where its tokens end.
    """
    if answer.token_ends is None:
        raise InvalidInputError(
            "the server does not say where tokens end, which scores need: start it again with this "
            "release, or ask without scores"
        )
    found = read_elements(answer.text, space.scale, task, notation, thinking=thinking)
    probabilities = [
        _probability(answer, found.spans[place], box=place < found.num_objects)
        for place in found.kept
    ]
    usual = math.exp(sum(answer.rollout_logprobs) / max(len(answer.rollout_logprobs), 1))
    num_objects = 0 if task == "cls" else len(found.columns.ids)
    objects = [] if task == "cls" else line.objects
    _set_scores(objects, probabilities[:num_objects], usual)
    _set_scores(line.relationships, probabilities[num_objects:], usual)


def _set_scores(
    items: Sequence[LineObject | LineRelationship], known: Sequence[float], usual: float
) -> None:
    """The first items are those that are known."""
    for place, item in enumerate(items):
        item.score = min(known[place] if place < len(known) else usual, 1.0)


def _probability(answer: Completion, span: Span, *, box: bool) -> float:
    """The product over the tokens that end in a span.

    Args:
        answer: With `token_ends`.
        span: Of an element.
        box: Whether tokens without a letter are left out.
    """
    return math.exp(
        sum(
            logprob
            for text, logprob in _tokens(answer, span)
            if not box or any(map(str.isalpha, text))
        )
    )


def _tokens(answer: Completion, span: Span) -> Iterator[tuple[str, float]]:
    ends = answer.token_ends or ()
    for place in range(*(bisect_right(ends, bound) for bound in span)):
        start = ends[place - 1] if place else 0
        yield answer.text[start : ends[place]], answer.rollout_logprobs[place]
