"""A line of `predictions.jsonl`: what `sgg-rl infer` writes and `sgg-rl evaluate` reads.

Anybody's predictions, and references too, are taken in the plain form of it: `image_id`, `width`,
`height`, `objects`, `relationships`. Other keys are ignored. Answers that nobody has read yet are
taken as text.

A line of the task `det` has no relationships; the objects of a line of `cls`, the ends of its
triplets, need no box.
"""

import hashlib
from typing import Annotated

import msgspec

from scene_graph.cleaning import Task
from scene_graph.graph import Relationship, SceneGraph, SceneObject

ImageId = str | int | float
"""Some programs write the id 139 as 139.0: `image_id_text` makes 139 of it"""
Positive = Annotated[float, msgspec.Meta(gt=0)]
Score = Annotated[float, msgspec.Meta(ge=-1e6, le=1e6)]
"""So that products of three are finite"""
Count = Annotated[int, msgspec.Meta(ge=0, le=1_000_000_000)]
Pixels = (
    Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]
    | Annotated[float, msgspec.Meta(ge=0, le=1e6, multiple_of=1)]
)
"""A whole number, also where it is written 640.0; 0 where nobody could open the image"""


class LineObject(msgspec.Struct, gc=False, omit_defaults=True):
    """An object.

    Example: `{"id": "man.1", "bbox": [10, 20, 200, 400]}`
    """

    id: str
    """Name, dot, number"""
    bbox: tuple[float, float, float, float] | None = None
    """x1, y1, x2, y2 in pixels of the image; None in lines of the task `cls` alone"""
    score: Score | None = None
    """None where nobody gave one: it counts as 1"""


class LineRelationship(msgspec.Struct, gc=False, omit_defaults=True):
    """A relationship between two objects, by id.

    Example: `{"subject": "man.1", "predicate": "riding", "object": "horse.2"}`
    """

    subject: str
    predicate: str
    object: str
    score: Score | None = None
    """None where nobody gave one: it counts as 1"""


class GraphLine(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One image.

    Example: `{"image_id": "7", "width": 640, "height": 480, "objects": [{"id": "man.1", "bbox":
    [10, 20, 200, 400]}], "relationships": []}`
    """

    image_id: ImageId
    width: Pixels
    height: Pixels
    objects: list[LineObject]
    relationships: list[LineRelationship]
    status: str = "ok"
    """The answer's, as `scene_graph.parsing.Status`; anything but `ok` is a failure without a
    graph"""
    truncated: bool = False
    """With `invalid_json`: the answer stops inside its JSON"""
    problem: str | None = None
    """Why no model has seen the image, where none has"""
    text: str | None = None
    """All that the model wrote"""
    num_tokens: Count | None = None
    finish_reason: str | None = None
    policy_versions: tuple[int, int] | None = None
    """Oldest and newest that sampled a token of it"""
    mean_logprob: float | None = None
    """Where it is the best of several answers: the mean natural log-probability of its tokens, 0 or
    less, in the distribution that they were sampled from"""
    unconstrained_status: str | None = None
    """Where the graph was written under a grammar: the status of the free answer"""
    unconstrained_text: str | None = None
    image_sha256: str | None = None
    """SHA-256 of the picture's file that the model has seen"""
    image: str | None = None
    """A reference's picture: a file beside this one, which the report shows"""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the image in pixels."""
        return int(self.width), int(self.height)

    def shows(self, picture: bytes | None) -> bool:
        """Whether the model has seen this picture.

        Args:
            picture: The encoded file. One that is not there is taken for the same, as any is where
                the line has no sha256.
        """
        known = self.image_sha256
        return known is None or picture is None or image_sha256(picture) == known

    @property
    def graph(self) -> SceneGraph:
        """The line's graph, boxes in pixels; without the objects that have no box."""
        return SceneGraph(
            objects=tuple(
                SceneObject(id=item.id, bbox=item.bbox)
                for item in self.objects
                if item.bbox is not None
            ),
            relationships=tuple(
                Relationship(subject=r.subject, predicate=r.predicate, object=r.object)
                for r in self.relationships
            ),
        )


def image_sha256(picture: bytes) -> str:
    """An encoded picture's, as a line says it: of one content under any name, on any machine."""
    return hashlib.sha256(picture).hexdigest()


def graph_lists(
    graph: SceneGraph, scale: tuple[float, float] = (1.0, 1.0)
) -> tuple[list[LineObject], list[LineRelationship]]:
    """The lists of a line, with the boxes of a graph times the width and height in `scale`."""
    objects = [LineObject(item.id, item.bbox) for item in graph.scaled(*scale).objects]
    edges = [LineRelationship(r.subject, r.predicate, r.object) for r in graph.relationships]
    return objects, edges


def decode_graph_line(text: bytes, task: Task) -> GraphLine:
    """A line whose objects have boxes, but where the task is `cls`.

    Raises:
        msgspec.DecodeError: It is none.
    """
    return check_boxes(_DECODER.decode(text), task)


def check_boxes(line: GraphLine, task: Task) -> GraphLine:
    """The line itself.

    Raises:
        msgspec.ValidationError: An object has no box, and the task is not `cls`.
    """
    if task != "cls":
        for number, item in enumerate(line.objects):
            if item.bbox is None:
                raise msgspec.ValidationError(
                    f"Object missing required field `bbox` - at `$.objects[{number}]`"
                )
    return line


_DECODER = msgspec.json.Decoder(GraphLine)


class TextLine(msgspec.Struct, kw_only=True):
    """One image's answer as text; the image's size is the reference's.

    Example: `{"image_id": "7", "text": "{\"objects\": []...", "box_space": "relative_1000"}`
    """

    image_id: ImageId
    text: str
    box_space: str
    """See `scene_graph.boxes`"""
    num_tokens: Count | None = None


class ResponseFile(msgspec.Struct, kw_only=True):
    """One of the files that R1-SGG's inference writes, one an image.

    Example: `{"image_id": "7", "response": "<answer>...", "box_scale": [1000.0, 1000.0]}`
    """

    image_id: ImageId
    response: str
    box_scale: tuple[Positive, Positive]
    """Width and height of the image in the units of its boxes"""
