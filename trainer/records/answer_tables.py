"""A few answers of a step, drawn beside the annotated graphs: for trackers, which show tables."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from PIL import Image

from scene_data.recorded import draw_record, recorded_picture
from services.images import decode_image
from services.schemas.groups import TrainGroup
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
    """Mean of all rewards of its group."""
    status: str
    text: str
    """All that the model wrote; a long one is cut."""
    drawing: Image.Image | None
    """The graph over its picture, or on white where that is gone. None where the answer has no
    graph, for the task `cls`, and for a group without reference."""
    annotated: Image.Image | None
    """The annotated graph, in the same way."""

    @property
    def code(self) -> str:
        """The text as a block of Markdown in which nothing is markup."""
        return "\n".join(f"    {line}" for line in self.text.splitlines())


def draw_answers(settings: Settings, groups: Sequence[TrainGroup]) -> list[DrawnAnswer]:
    """The first answer of each group: answers of a group are alike in how they were sampled."""
    return [_draw(settings, group) for group in groups]


def jpeg(drawing: Image.Image) -> bytes:
    """As a file."""
    buffer = io.BytesIO()
    drawing.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def _draw(settings: Settings, group: TrainGroup) -> DrawnAnswer:
    text = group.rollout.completions[0].text
    drawn = {} if settings.data.task == "cls" else _drawings(settings, group)
    return DrawnAnswer(
        group_id=group.rollout.group_id,
        reward=group.rewards[0].total,
        group_mean=fmean(reward.total for reward in group.rewards),
        status=group.rewards[0].status,
        text=text if len(text) <= _CHARACTERS else text[:_CHARACTERS] + "…",
        drawing=drawn.get("0"),
        annotated=drawn.get("reference"),
    )


def _drawings(settings: Settings, group: TrainGroup) -> dict[str, Image.Image]:
    images = group.prompt.images if group.prompt else []
    run, train = settings.run.files, settings.data.train
    pictures = (recorded_picture(run, train, image.sha256, group.index) for image in images)
    first = group.rollout.model_copy(update={"completions": group.rollout.completions[:1]})
    alone = group.model_copy(update={"rollout": first})
    files = draw_record(alone, settings.data.task, next(pictures, None))
    return {name: _small(file) for name, file in files}


def _small(file: bytes) -> Image.Image:
    drawn = decode_image(file)
    drawn.thumbnail((SIDE, SIDE))
    return drawn
