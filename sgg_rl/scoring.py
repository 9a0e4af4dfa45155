"""What answers say, and what they earn."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import InstanceOf

from reward_service.scoring import make_scorer
from scene_data.dataset import Sample
from scene_graph.boxes import BoxSpace
from scene_graph.graph import SceneGraph
from scene_graph.parsing import parse_completion
from services.errors import InvalidInputError, SggError
from services.schemas.rewards import (
    Notation,
    ReferenceGraph,
    Reward,
    RewardGroup,
    RewardRequest,
    Task,
)
from sgg_rl.arguments import Size, checked
from sgg_rl.clients import Client
from sgg_rl.pictures import AnyGraph

_GROUP = 256
"""The most answers of one message"""


@checked
def read_answer(
    text: str,
    image_size: Size,
    *,
    box_space: str = "relative_1000",
    notation: Notation = "json",
) -> SceneGraph:
    """The scene graph in a model's answer, with names normalised and boxes in pixels of the image.

    What cannot be read is left out; nothing of an answer is an error. An answer without a graph
    gives an empty one, and `score` says in `status` what is wrong with it.

    Example:
        >>> text = '''<answer>{"objects": [{"id": "man.1", "bbox": [0, 0, 500, 1000]}],
        ... "relationships": []}</answer>'''
        >>> sgg_rl.read_answer(text, (640, 480)).objects
        (SceneObject(id='man.1', bbox=(0.0, 0.0, 320.0, 480.0)),)

    Args:
        text: All that the model wrote, with or without thinking and tags.
        image_size: Width and height in pixels.
        box_space: What its boxes are in: `relative_1000`, `relative_1` or `pixels:WxH`.
        notation: What it is written in: `json` or `compact`.

    Raises:
        InvalidInputError: There is no such box space, or no picture has that size.
    """
    try:
        space = BoxSpace.parse(box_space)
    except ValueError as error:
        raise InvalidInputError(str(error)) from error
    return parse_completion(text, space, notation=notation).graph.scaled(*image_size)


@checked
def score(
    answers: str | Sequence[str],
    reference: AnyGraph,
    *,
    image_size: Size | None = None,
    box_space: str = "relative_1000",
    rubric: str | Mapping[str, Any] = "balanced",
    task: Task = "sgg",
    thinking: bool = False,
    notation: Notation = "json",
    client: InstanceOf[Client] | None = None,
) -> list[Reward]:
    """What answers about one image earn, as the reward service scores them.

    Example:
        >>> sample = sgg_rl.load_dataset("toy/heldout.parquet")[0]
        >>> answer = '''<answer>{"objects": [{"id": "green square.1", "bbox": [0, 14, 28, 42]}],
        ... "relationships": []}</answer>'''
        >>> rewards = sgg_rl.score([answer, "a square"], sample, box_space="pixels:112x112")
        >>> for reward in rewards:
        ...     print(f"{reward.total:.2f} {reward.status}, {reward.matched.objects} objects found")
        2.33 ok, 1 objects found
        0.00 no_answer, 0 objects found

    Args:
        answers: Texts as the model wrote them, one or more; one text is one answer.
        reference: A sample of a dataset; or a graph, whose boxes are pixels of the image.
        image_size: Width and height in pixels, where the reference is a graph.
        box_space: What the answers' boxes are in: `relative_1000`, `relative_1` or `pixels:WxH`.
        rubric: Its name, or a rubric in full (docs/rewards.md).
        task: `det` looks at objects alone, `cls` at triplets of names.
        thinking: The prompt asked for `<think>`.
        notation: What the prompt asked for: `json` or `compact`.
        client: Its reward service scores, rather than this process: it may know similarities that
            need a model.

    Returns:
        One for each answer, in order: `total` is the weighted sum of `breakdown`, whose terms are
        in 0..1.

    Raises:
        InvalidInputError: The rubric, the box space, the size or the reference is impossible.
        SggError: The service failed; its subclass and message say how.
    """
    texts = [answers] if isinstance(answers, str) else list(answers)
    if not texts:
        raise InvalidInputError("answers: there is none to score; give one text or more")
    if isinstance(reference, Sample):
        image_size, reference = (reference.width, reference.height), reference.graph
    if image_size is None:
        raise InvalidInputError("image_size: a graph needs it beside it, as (width, height)")
    about = ReferenceGraph.model_validate(reference, from_attributes=True)
    groups = [
        RewardGroup(
            group_id="score",
            image_size=image_size,
            box_space=box_space,
            reference=about,
            completions=texts[first : first + _GROUP],
            require_thinking=thinking,
            notation=notation,
        )
        for first in range(0, len(texts), _GROUP)
    ]
    try:
        ask = _scorer(rubric if isinstance(rubric, str) else dict(rubric), task, client)
        return [reward for group in groups for reward in ask(group)]
    except InvalidInputError as error:  # it names the place in a message to the service
        raise InvalidInputError(error.message.removeprefix("body.")) from error


def _scorer(
    rubric: str | dict[str, Any], task: Task, client: Client | None
) -> Callable[[RewardGroup], list[Reward]]:
    if client is None:
        scorer = make_scorer(rubric, task)
        return lambda group: scorer.score([group])[0].rewards

    def ask(group: RewardGroup) -> list[Reward]:
        request = RewardRequest(task=task, rubric=rubric, groups=[group])
        scored = client.reward.score(request).groups[0]
        if scored.error is not None:
            raise SggError(scored.error.detail)
        return scored.rewards

    return ask
