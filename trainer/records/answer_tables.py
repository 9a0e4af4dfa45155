"""A few answers of a step, drawn beside the annotated graphs: for trackers, which show tables."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from PIL import Image

from scene_graph.boxes import BoxSpace
from scene_graph.drawing import draw_png
from scene_graph.graph import Relationship, SceneGraph, SceneObject
from scene_graph.parsing import parse_completion
from services.errors import SggError
from services.images import ImageStore, decode_image
from services.schemas.groups import GroupReference, TrainGroup
from services.schemas.rewards import ReferenceGraph
from services.settings import Settings

SIDE = 512
"""The longer side of a drawing in pixels at most: a photo's then has about 50 kB as JPEG."""
_CHARACTERS = 4000
"""An answer's text is cut here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnAnswer:
    """One row of a table."""

    group_id: str
    reward: float
    group_mean: float
    """Of all rewards of its group."""
    status: str
    text: str
    """All that the model wrote; a long one is cut."""
    drawing: Image.Image | None
    """The graph over its picture; None for the task `cls`, and for a group without reference."""
    annotated: Image.Image | None
    """The annotated graph, in the same way."""

    @property
    def code(self) -> str:
        """The text as a block of Markdown in which nothing is markup."""
        return "\n".join(f"    {line}" for line in self.text.splitlines())


def draw_answers(settings: Settings, groups: Sequence[TrainGroup]) -> list[DrawnAnswer]:
    """The first answer of each group: answers of a group are alike in how they were sampled.

    A picture that is gone, or was never kept, leaves the drawing on white.
    """
    store = ImageStore(settings.run.files.images)
    return [_draw(settings, store, group) for group in groups]


def jpeg(drawing: Image.Image) -> bytes:
    """As a file."""
    buffer = io.BytesIO()
    drawing.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def _draw(settings: Settings, store: ImageStore, group: TrainGroup) -> DrawnAnswer:
    text, reference = group.rollout.completions[0].text, group.reference
    drawing = annotated = None
    if reference is not None and settings.data.task != "cls":
        space = BoxSpace.parse(reference.box_space)
        parsed = parse_completion(text, space, task=settings.data.task)
        picture = _picture(store, group)
        drawing = _over(picture, parsed.graph.scaled(*reference.image_size), reference)
        annotated = _over(picture, _graph(reference.graph), reference)
    return DrawnAnswer(
        group_id=group.rollout.group_id,
        reward=group.rewards[0].total,
        group_mean=fmean(reward.total for reward in group.rewards),
        status=group.rewards[0].status,
        text=text if len(text) <= _CHARACTERS else text[:_CHARACTERS] + "…",
        drawing=drawing,
        annotated=annotated,
    )


def _picture(store: ImageStore, group: TrainGroup) -> Image.Image | None:
    if group.prompt is None or not group.prompt.images:
        return None
    try:
        return decode_image(store.get(group.prompt.images[0]))
    except (SggError, OSError):
        return None


def _over(picture: Image.Image | None, graph: SceneGraph, reference: GroupReference) -> Image.Image:
    drawn = decode_image(draw_png(graph, *reference.image_size, picture))
    drawn.thumbnail((SIDE, SIDE))
    return drawn


def _graph(annotated: ReferenceGraph) -> SceneGraph:
    return SceneGraph(
        objects=tuple(SceneObject(id=o.id, bbox=o.bbox) for o in annotated.objects),
        relationships=tuple(
            Relationship(subject=r.subject, predicate=r.predicate, object=r.object)
            for r in annotated.relationships
        ),
    )
