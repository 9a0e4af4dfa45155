"""What `sgg-rl score` reads: a text file with one completion, or JSONL with a row for each."""

import json
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from services.errors import InvalidInputError, SettingsError
from services.schemas.common import Message, Name
from services.schemas.rewards import BoxSpaceName, ReferenceGraph, RewardGroup

_SHOWN_MISTAKES = 3
_MAX_MESSAGE = 300


class CompletionRow(Message):
    """One completion, and what it is scored with where the options do not say it.

    Example: `{"id": "a", "completion": "<answer>{…}</answer>", "image_size": [640, 480],
    "box_space": "relative_1000", "reference": {"objects": […], "relationships": […]}}`
    """

    completion: str
    reference: ReferenceGraph | None = None
    image_size: tuple[int, int] | None = None
    """Width and height of the original image, whose pixels the reference's boxes are in."""
    box_space: BoxSpaceName | None = None
    id: Name | None = None
    num_tokens: Annotated[int, Field(ge=0)] | None = None
    require_thinking: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """What the options say, for rows that do not."""

    reference: ReferenceGraph | None
    image_size: tuple[int, int] | None
    box_space: str
    require_thinking: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """A row with the defaults filled in."""

    id: str
    text: str
    box_space: str
    require_thinking: bool
    group: RewardGroup | None
    """As the scorer takes it; None without a reference"""


@dataclass(frozen=True, slots=True)
class BadRow:
    """A line that cannot be scored."""

    message: str
    """Names the line and the field"""


def read_completions(file: str, defaults: Defaults) -> Iterator[Completion | BadRow]:
    """The completions of a file, in order.

    Args:
        file: `.jsonl`, or `-` for JSONL from the standard input; anything else is one completion.
        defaults: For what rows do not say.

    Raises:
        SettingsError: The file cannot be read, or the options do not fit its one completion.
    """
    path = Path(file)
    try:
        if file != "-" and path.suffix != ".jsonl":
            text = path.read_bytes().decode("utf-8-sig", errors="replace")
            yield _completed(CompletionRow(completion=text, id=path.name), "", defaults)
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


def _of_line(line: bytes, name: str, defaults: Defaults) -> Completion | BadRow:
    try:
        value = json.loads(line.decode("utf-8-sig", errors="replace"))
    except (ValueError, RecursionError) as error:
        return BadRow(f"{name}: not JSON: {error}")
    try:
        return _completed(CompletionRow.model_validate(value), name, defaults)
    except ValidationError as error:
        return BadRow(f"{name}: {_mistakes(error)}")
    except InvalidInputError as error:
        return BadRow(f"{name}: {error.message}")


def _completed(row: CompletionRow, name: str, defaults: Defaults) -> Completion:
    """A row with the defaults filled in.

    Raises:
        ValidationError: The size of the image is impossible.
        InvalidInputError: There is a reference, but no size.
    """
    reference = row.reference or defaults.reference
    size = row.image_size or defaults.image_size
    space = row.box_space or defaults.box_space
    thinking = row.require_thinking
    thinking = defaults.require_thinking if thinking is None else thinking
    group = None
    if reference is not None:
        if size is None:
            raise InvalidInputError("image_size: a reference needs it (or --image-size WxH)")
        group = RewardGroup(
            group_id=row.id or name,
            image_size=size,
            box_space=space,
            reference=reference,
            completions=[row.completion],
            require_thinking=thinking,
            num_tokens=None if row.num_tokens is None else [row.num_tokens],
        )
    return Completion(
        id=row.id or name,
        text=row.completion,
        box_space=space,
        require_thinking=thinking,
        group=group,
    )


def _mistakes(error: ValidationError) -> str:
    found = error.errors(include_input=False, include_url=False)
    shown = [
        f"{'.'.join(map(str, mistake['loc'])) or 'the row'}: {mistake['msg']}"[:_MAX_MESSAGE]
        for mistake in found[:_SHOWN_MISTAKES]
    ]
    more = len(found) - len(shown)
    return "; ".join(shown) + (f"; and {more} more" if more else "")
