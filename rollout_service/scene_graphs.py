"""The run's own question about a picture, and the graph in its answer.

As `sgg-rl infer` asks and reads: both use `scene_data.messages` and `scene_graph.parsing`.
"""

import math
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean

from rollout_service.engine import GroupRequest
from scene_data.messages import answer_sampling, box_space, image_messages
from scene_graph.boxes import BoxSpace
from scene_graph.drawing import draw_svg
from scene_graph.faults import main_fault
from scene_graph.graph import SceneGraph
from scene_graph.parsing import ParsedCompletion, parse_completion
from services.errors import InvalidInputError, SggError
from services.images import ImageHeader, decode_image, image_header
from services.printable import printable
from services.schemas.rewards import Status
from services.schemas.rollouts import Completion
from services.schemas.scene_graphs import (
    GraphObject,
    GraphRelationship,
    ImageGraph,
    SceneGraphOptions,
)
from services.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the model wrote about a picture."""

    completion: Completion
    parsed: ParsedCompletion
    graph: SceneGraph
    """Boxes in pixels of the upright picture"""


@dataclass(frozen=True, slots=True)
class PictureQuestion:
    """What a run asks about one picture."""

    settings: Settings
    image: bytes
    """The encoded file"""
    header: ImageHeader
    space: BoxSpace
    """That the model writes this picture's boxes in"""

    @classmethod
    def about(cls, settings: Settings, image: bytes) -> "PictureQuestion":
        """Looks at the file's header.

        Raises:
            InvalidInputError: It is no picture that the system takes.
            TooLargeError: It is over a limit on pictures.
            SggError: The settings are of no model.
        """
        header = image_header(image)
        with _own_settings():
            return cls(settings, image, header, box_space(settings.model, header))

    def request(self, options: SceneGraphOptions, *, constrained: bool) -> GroupRequest:
        """One answer, sampled as `options` and `[evaluation]` say.

        Raises:
            SggError: The settings have no question.
        """
        data, evaluation = self.settings.data, self.settings.evaluation
        own = options.model_dump(include={"temperature", "max_tokens"}, exclude_none=True)
        sampling = answer_sampling(
            evaluation.model_copy(update=own),
            data,
            seed=options.seed,
            constrained=constrained,
        )
        with _own_settings():
            messages = image_messages(data, self.space, may_think=not constrained)
        return GroupRequest(
            messages=messages,
            images=[self.image],
            sampling=sampling,
            request_id=f"http-{secrets.token_hex(8)}",
            adapter=options.adapter,
        )

    def read(self, completion: Completion) -> Answer:
        """The graph in an answer, by the rules that rewards are given by."""
        data = self.settings.data
        parsed = parse_completion(
            completion.text, self.space, task=data.task, notation=data.notation
        )
        graph = parsed.graph.scaled(*self.header.size)
        return Answer(completion=completion, parsed=parsed, graph=graph)

    def draw(self, answer: Answer) -> str:
        """The graph over its picture, as SVG; decodes the picture."""
        return draw_svg(answer.graph, *self.header.size, decode_image(self.image))

    def image_graph(
        self, answer: Answer, *, unconstrained_status: Status | None, text: bool, svg: str | None
    ) -> ImageGraph:
        """The message about an answer.

        Args:
            answer: To this question.
            unconstrained_status: Of the free answer before it, if there was one.
            text: Whether it has the answer's text.
            svg: The drawing.
        """
        completion, parsed, task = answer.completion, answer.parsed, self.settings.data.task
        fault = main_fault(completion.text, parsed, task)
        versions = [span.policy_version for span in completion.policy_versions]
        return ImageGraph(
            width=self.header.width,
            height=self.header.height,
            objects=[
                GraphObject(id=item.id, bbox=None if task == "cls" else item.bbox)
                for item in answer.graph.objects
            ],
            relationships=[
                GraphRelationship(subject=one.subject, predicate=one.predicate, object=one.object)
                for one in answer.graph.relationships
            ],
            status=parsed.status,
            dropped=parsed.dropped,
            truncated=parsed.truncated,
            fault=None if fault is None else printable(fault),
            unconstrained_status=unconstrained_status,
            confidence=confidence(completion.rollout_logprobs),
            num_tokens=len(completion.token_ids),
            finish_reason=completion.finish_reason,
            policy_versions=(min(versions), max(versions)) if versions else None,
            text=completion.text if text else None,
            svg=svg,
        )


def confidence(logprobs: list[float]) -> float | None:
    """The geometric mean of probabilities, of their natural logarithms; None without any."""
    return min(math.exp(fmean(logprobs)), 1.0) if logprobs else None


@contextmanager
def _own_settings() -> Iterator[None]:
    """What is wrong with the server's settings is no fault of the request."""
    try:
        yield
    except InvalidInputError as error:
        raise SggError(
            f"this server cannot ask its run's question, mend its settings: {error.message}"
        ) from error
