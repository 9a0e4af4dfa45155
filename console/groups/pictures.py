"""Pictures of a run: from its image store, or from the dataset's row."""

from console.groups.rules import Rules
from console.runs import Run
from scene_data.recorded import recorded_picture
from scene_graph.drawing.svg import encode_jpeg
from services.errors import InvalidInputError, NotFoundError, TooLargeError
from services.images import decode_image

LONGEST = 1024
"""Pixels of the longer side that a page gets at most"""
_QUALITY = 85


def picture(run: Run, rules: Rules, sha256: str, row: int | None) -> bytes:
    """An upright JPEG of the picture with that digest.

    Args:
        run: The run.
        rules: The run's.
        sha256: Of the encoded file.
        row: Of the dataset, where it is known.

    Raises:
        NotFoundError: The picture is gone; says where it was looked for.
    """
    train = rules.settings.data.train if rules.settings else None
    data = recorded_picture(run.files, train, sha256, row)
    if data is None:
        raise NotFoundError(
            f"this picture is gone: the run's image store keeps pictures only while they are "
            f"sampled, and {train or 'the dataset'} does not have it any more"
        )
    return as_jpeg(data)


def as_jpeg(data: bytes) -> bytes:
    """A picture as a page gets it: upright, and no larger than `LONGEST`.

    Raises:
        NotFoundError: It cannot be opened.
    """
    try:
        return encode_jpeg(decode_image(data), LONGEST, _QUALITY)
    except (InvalidInputError, TooLargeError) as error:
        raise NotFoundError(f"this picture cannot be shown: {error.message}") from error
