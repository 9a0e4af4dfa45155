"""One picture, asked about through a run's own servers, and scored by its reward service."""

import base64
import json
import shlex
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from console.groups.difference import JudgedGraph, difference, judged_reference, plain_graph
from console.groups.rules import Rules
from evaluation.inference.prompts import sendable
from reward_service.explain.explainer import Explanation, explain_reward
from reward_service.scoring import reference_columns
from scene_data.messages import box_space
from scene_graph.boxes import BoxSpace
from services.errors import InvalidInputError, SggError, UnavailableError
from services.http.clients.reward import RewardClient
from services.http.clients.rollout import RolloutClient
from services.images import image_header
from services.printable import printable
from services.schemas.rewards import ReferenceGraph, RewardGroup, RewardRequest
from services.schemas.rollouts import InlineImage
from services.schemas.scene_graphs import (
    ImageError,
    ImageGraph,
    SceneGraphOptions,
    SceneGraphRequest,
)
from services.settings import Settings

_ANSWER_S = 120.0
"""Longest wait for a server: a picture takes seconds, and a queue of groups may be before it"""
_REWARD_S = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a person asks."""

    name: str
    """The picture's file"""
    image: bytes
    options: SceneGraphOptions
    reference: ReferenceGraph | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """What came back."""

    url: str
    """The server that answered"""
    graph: ImageGraph
    explanation: Explanation | None
    """With a reference that the reward service has scored against"""
    graphs: dict[str, JudgedGraph]
    """To be drawn, as `CompletionView.graphs` gives them"""
    problem: str
    """Why there is no reward, though a reference was given"""

    @property
    def json(self) -> str:
        """The graph, for reading; a model may have written any name."""
        found = self.graph.model_dump(mode="json", exclude={"text", "svg"})
        return printable(json.dumps(found, indent=1, ensure_ascii=False))


def read_reference(text: str) -> ReferenceGraph | None:
    """A reference as JSON with boxes in pixels; None for no text.

    Raises:
        InvalidInputError: It is none.
    """
    if not text.strip():
        return None
    try:
        return ReferenceGraph.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "it"
        raise InvalidInputError(
            f"the reference is no graph, {where}: {first['msg']}. Write "
            '{"objects": [{"id": "man.1", "bbox": [x1, y1, x2, y2]}], "relationships": '
            '[{"subject": "man.1", "predicate": "riding", "object": "horse.2"}]}'
        ) from error


async def try_picture(question: Question, rules: Rules, servers: list[str]) -> Tried:
    """Ask the first server that answers, then the reward service.

    Args:
        question: The picture and how it is asked about.
        rules: The run's; with settings.
        servers: Addresses of rollout servers, tried in turn.

    Raises:
        UnavailableError: None answers.
        SggError: The picture or the options are wrong, or the engine fails.
    """
    settings = rules.settings
    assert settings is not None
    url, graph = await _answer(question, settings, servers)
    plain = {"completion": plain_graph(graph.graph)}
    if question.reference is None:
        return Tried(url=url, graph=graph, explanation=None, graphs=plain, problem="")
    try:
        group = _reward_group(question, settings, graph)
        found = await _scored(group, rules, settings)
    except SggError as error:
        return Tried(url=url, graph=graph, explanation=None, graphs=plain, problem=error.message)
    size, space = group.image_size, BoxSpace.parse(group.box_space)
    reference = reference_columns(group, rules.task)[0]
    graphs = {
        "difference": difference(found, space, size),
        **plain,
        "reference": judged_reference(reference, found, size),
    }
    return Tried(url=url, graph=graph, explanation=found, graphs=graphs, problem="")


async def _answer(
    question: Question, settings: Settings, servers: list[str]
) -> tuple[str, ImageGraph]:
    data = base64.b64encode(sendable(question.image)).decode()
    request = SceneGraphRequest(
        images=[InlineImage(data=data)], **question.options.model_dump(exclude_none=True)
    )
    away: UnavailableError | None = None
    for url in servers:
        # A server has to know the token before it is sent there: addresses come from files.
        async with RolloutClient(
            url, token=settings.data_token, timeout_s=_ANSWER_S, registered=settings.security
        ) as client:
            try:
                (graph,) = (await client.scene_graphs(request, retry=False)).graphs
            except UnavailableError as error:
                away = error
                continue
        if isinstance(graph, ImageError):
            raise InvalidInputError(graph.error.detail)
        return url, graph
    raise away or UnavailableError("the run has no rollout server")


def _reward_group(question: Question, settings: Settings, graph: ImageGraph) -> RewardGroup:
    assert question.reference is not None
    return RewardGroup(
        group_id="try",
        image_size=(graph.width, graph.height),
        box_space=str(box_space(settings.model, image_header(question.image))),
        reference=question.reference,
        completions=[graph.text or ""],
        require_thinking=settings.data.thinking,
        notation=settings.data.notation,
        num_tokens=[graph.num_tokens],
    )


async def _scored(group: RewardGroup, rules: Rules, settings: Settings) -> Explanation:
    reward = settings.reward
    request = RewardRequest(task=settings.data.task, rubric=reward.rubric, groups=[group])
    async with RewardClient(reward.url, token=settings.data_token, timeout_s=_REWARD_S) as client:
        (scored,) = (await client.score(request)).groups
    if scored.error:
        raise InvalidInputError(scored.error.detail)
    return explain_reward(
        group.completions[0],
        group,
        scored.rewards[0],
        rules.weights,
        similarity=rules.similarity,
        task=rules.task,
    )


def curl_line(url: str, question: Question, *, token: bool) -> str:
    """The command that asks the same, for a shell.

    Args:
        url: The server's.
        question: What was asked.
        token: Whether the server asks for one.
    """
    fields = question.options.model_dump(exclude_none=True)
    options = {name: _field(value) for name, value in fields.items() if value is not False}
    header = ['-H "Authorization: Bearer $SGG_DATA_TOKEN"'] if token else []
    name = printable(question.name.replace("\n", " ")) or "picture.jpg"
    if set(name) & set(',;"'):  # which curl gives a meaning of its own
        name = json.dumps(name, ensure_ascii=False)
    parts = [
        "curl -sSf",
        *header,
        f"-F {shlex.quote(f'images=@{name}')}",
        *(f"-F {shlex.quote(f'{name}={value}')}" for name, value in options.items()),
        shlex.quote(f"{url}/v1/scene-graphs"),
    ]
    return " ".join(parts)


def _field(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
