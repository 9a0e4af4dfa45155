"""What `sgg-rl score` reads: a text file with one completion, or JSONL with a row for each."""

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from services.errors import InvalidInputError, SettingsError
from services.schemas.common import Message, Name
from services.schemas.rewards import BoxSpaceName, Notation, ReferenceGraph, RewardGroup

_SHOWN_MISTAKES = 3
_MAX_MESSAGE = 300


class CompletionRow(Message):
    """One completion, and what it is scored with; options stand in for what a row does not say.

    Example: `{"id": "a", "completion": "<answer>{…}</answer>", "image_size": [640, 480],
    "box_space": "relative_1000", "reference": {"objects": […], "relationships": […]}}`
    """

    completion: str
    reference: ReferenceGraph | None
    image_size: tuple[int, int] | None
    """Width and height of the original image, whose pixels the reference's boxes are in."""
    box_space: BoxSpaceName
    id: Name
    num_tokens: Annotated[int, Field(ge=0)] | None = None
    require_thinking: bool
    notation: Notation


Scored = tuple[CompletionRow, RewardGroup | None]
"""A row, and what the scorer takes; None without a reference"""


def read_completions(
    file: str, defaults: Mapping[str, Any]
) -> Iterator[Scored | InvalidInputError]:
    """The completions of a file, in order; for a line that cannot be scored, why.

    Args:
        file: `.jsonl`, or `-` for JSONL from the standard input; anything else is one completion.
        defaults: Fields of rows that do not say them.

    Raises:
        SettingsError: The file cannot be read, or the options do not fit its one completion.
    """
    path = Path(file)
    try:
        if file != "-" and path.suffix != ".jsonl":
            text = path.read_bytes().decode("utf-8-sig", errors="replace")
            yield _scored({"completion": text, "id": path.name}, defaults)
            return
        with nullcontext(sys.stdin.buffer) if file == "-" else path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _of_line(line, f"line {number}", defaults)
    except OSError as error:
        raise SettingsError(f"cannot read {file}: {error.strerror}") from error
    except InvalidInputError as error:
        raise SettingsError(error.message) from error


def read_reference(file: Path) -> ReferenceGraph:
    """The graph in a JSON file.

    Raises:
        SettingsError: It cannot be read, or is no reference graph.
    """
    try:
        return ReferenceGraph.model_validate(json.loads(file.read_bytes()))
    except OSError as error:
        raise SettingsError(f"cannot read {file}: {error.strerror}") from error
    except ValidationError as error:
        raise SettingsError(f"--reference {file}: {_mistakes(error)}") from error
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"--reference {file} is not JSON: {error}") from error


def is_box_space(text: str) -> bool:
    """Whether it names a space that completions' boxes can be in."""
    try:
        TypeAdapter(BoxSpaceName).validate_python(text)
    except ValidationError:
        return False
    return True


def _of_line(line: bytes, name: str, defaults: Mapping[str, Any]) -> Scored | InvalidInputError:
    try:
        value = json.loads(line.decode("utf-8-sig", errors="replace"))
    except (ValueError, RecursionError) as error:
        return InvalidInputError(f"{name}: not JSON: {error}")
    try:
        return _scored(value, {**defaults, "id": name})
    except ValidationError as error:
        return InvalidInputError(f"{name}: {_mistakes(error)}")
    except InvalidInputError as error:
        return InvalidInputError(f"{name}: {error.message}")


def _scored(value: Any, defaults: Mapping[str, Any]) -> Scored:
    """A row with the defaults filled in.

    Raises:
        ValidationError: It is no row, or the size of the image is impossible.
        InvalidInputError: There is a reference, but no size.
    """
    if isinstance(value, dict):
        value = value | {key: defaults[key] for key in defaults if value.get(key) is None}
    row = CompletionRow.model_validate(value)
    if row.reference is None:
        return row, None
    if row.image_size is None:
        raise InvalidInputError("image_size: a reference needs it (or --image-size WxH)")
    return row, RewardGroup(
        group_id=row.id,
        image_size=row.image_size,
        box_space=row.box_space,
        reference=row.reference,
        completions=[row.completion],
        require_thinking=row.require_thinking,
        notation=row.notation,
        num_tokens=None if row.num_tokens is None else [row.num_tokens],
    )


def _mistakes(error: ValidationError) -> str:
    found = error.errors(include_input=False, include_url=False)
    shown = [
        f"{'.'.join(map(str, mistake['loc'])) or 'the row'}: {mistake['msg']}"[:_MAX_MESSAGE]
        for mistake in found[:_SHOWN_MISTAKES]
    ]
    more = len(found) - len(shown)
    return "; ".join(shown) + (f"; and {more} more" if more else "")
