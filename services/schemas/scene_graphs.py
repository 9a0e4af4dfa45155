"""`POST /v1/scene-graphs`: pictures in, their scene graphs out."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError

from scene_graph.graph import Relationship, SceneGraph, SceneObject
from services.schemas.common import MAX_IMAGES, Count, ImageRef, Message, Name
from services.schemas.problems import Problem
from services.schemas.rewards import Status, Task
from services.schemas.rollouts import InlineImage

Side = Annotated[int, Field(ge=1)]


class _Described(Message):
    """The service's page describes each field."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class SceneGraphOptions(_Described):
    """How graphs are sampled, and what comes with them. Prompt and boxes are the run's own."""

    temperature: float | None = Field(default=None, ge=0, le=2)
    """0 is greedy. Null: what the run's `[evaluation]` says, which is greedy where it says
    nothing."""
    max_tokens: int | None = Field(default=None, ge=1, le=32_768)
    """The most of one answer; null: as with `temperature`."""
    seed: int | None = Field(default=None, ge=0, lt=2**53)
    """The same seed and weights give the same graphs on one server."""
    constrain: Literal["never", "failures", "all"] | None = None
    """Ask again under the grammar of the run's answers: where the free answer has no graph, or for
    every image. Null: as with `temperature`."""
    adapter: Name | None = None
    """A LoRA adapter of the server's settings to sample with, instead of the policy alone."""
    text: bool = False
    """Whether the answers come as the model wrote them, too."""
    draw: Literal["svg"] | None = None
    """Whether each graph comes drawn over its picture, too."""


class SceneGraphRequest(SceneGraphOptions):
    """Body of `POST /v1/scene-graphs` as JSON.

    Example: `tests/contract/golden/scene_graph_request.json`
    """

    images: list[ImageRef | InlineImage] = Field(min_length=1, max_length=MAX_IMAGES)
    """An `ImageRef` is of the server's store."""


class SceneGraphForm(SceneGraphOptions):
    """Body of `POST /v1/scene-graphs` as a form, `multipart/form-data`."""

    images: list[bytes] = Field(min_length=1, max_length=MAX_IMAGES)
    """The files: one part each, all with this name."""

    @field_validator("images", mode="before")
    @classmethod
    def _are_files(cls, value: object) -> object:
        if isinstance(value, str) or (isinstance(value, list) and any(map(_is_text, value))):
            raise PydanticCustomError(
                "text", "a text is no picture: send its file, with an @: curl -F images=@photo.jpg"
            )
        return value


def _is_text(part: object) -> bool:
    return isinstance(part, str)


class GraphObject(_Described):
    """An object of a picture.

    Example: `{"id": "man.1", "bbox": [10, 20, 200, 400]}`
    """

    id: str
    """Name, dot, number; normalised"""
    bbox: tuple[float, float, float, float] | None
    """x1, y1, x2, y2 in pixels of the upright picture, not cut at its edges; null for the task
    `cls`."""


class GraphRelationship(Message):
    """A triplet between two object ids."""

    subject: str
    predicate: str
    object: str


class ImageGraph(_Described):
    """What the model sees in one picture.

    `status` is data, not an error; everything but `ok` has an empty graph.
    """

    width: Side
    """Pixels of the upright picture: its EXIF orientation is applied"""
    height: Side
    objects: list[GraphObject]
    relationships: list[GraphRelationship]
    status: Status
    """The answer's, as it would be scored"""
    dropped: dict[str, int]
    """Parts of the answer that are left out of the graph, counted by reason (`inverted_box`,
    `dangling_relationship`, …)"""
    truncated: bool
    """With `invalid_json`: the text stops inside the JSON."""
    fault: str | None
    """Why there is no graph, or only the smaller part of one, in words"""
    unconstrained_status: Status | None
    """Where the graph was written under a schema: the status of the free answer before it"""
    confidence: float | None = Field(ge=0, le=1)
    """The geometric mean of the probabilities of the answer's tokens: exp of the mean of their
    log-probabilities. Not calibrated. Null for an answer without a token."""
    num_tokens: Count
    finish_reason: Literal["stop", "length", "abort"]
    policy_versions: tuple[Count, Count] | None
    """Oldest and newest version that sampled a token of the answer"""
    text: str | None = None
    """All that the model wrote, if the request asks for it"""
    svg: str | None = Field(default=None, repr=False)
    """The graph drawn over its picture, if the request asks for it: a file of its own"""

    @property
    def graph(self) -> SceneGraph:
        """Boxes in pixels of the upright picture; for the task `cls` each is the whole picture."""
        whole = (0.0, 0.0, float(self.width), float(self.height))
        return SceneGraph(
            objects=tuple(SceneObject(id=o.id, bbox=o.bbox or whole) for o in self.objects),
            relationships=tuple(
                Relationship(subject=r.subject, predicate=r.predicate, object=r.object)
                for r in self.relationships
            ),
        )

    def _repr_svg_(self) -> str | None:
        """For a notebook."""
        return self.svg


class ImageError(Message):
    """Why a picture has no answer, while others of its request have theirs."""

    error: Problem


class SceneGraphResponse(Message):
    """Answer of `POST /v1/scene-graphs`, in the order of the request's images.

    Example: `tests/contract/golden/scene_graph_response.json`
    """

    server_id: Name
    task: Task
    graphs: list[ImageGraph | ImageError]
