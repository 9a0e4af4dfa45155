"""Lines of a JSONL file, decoded one at a time; a wrong line alone is left out."""

import codecs
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import msgspec

from evaluation.reading.lines import GraphLine, TextLine
from evaluation.reading.problems import Place, Problems
from scene_data.reading.rows import RowError, image_id_text
from services.errors import InvalidInputError

WRONG = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding of text from anywhere raises."""
Line = TypeVar("Line", bound=GraphLine | TextLine)


def read_lines(path: Path, problems: Problems) -> Iterator[tuple[Place, bytes]]:
    """Each line that is not blank, with its place; memory does not grow with the file.

    The byte order mark that some editors write before UTF-8 is skipped.

    Raises:
        InvalidInputError: It cannot be read, or is no JSONL but a JSON list, an object over several
            lines, or text in UTF-16.
    """
    is_first = True
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                text = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
                if text.strip():
                    if is_first:
                        _check_form(path, text.strip())
                    is_first = False
                    yield Place(problems, str(path), number), text
    except OSError as error:
        raise InvalidInputError(f"{path} cannot be read: {error.strerror}") from error


def _check_form(path: Path, first: bytes) -> None:
    """Refuse a file whose first line shows that no line of it will do."""
    if b"\0" in first[:8] or first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise InvalidInputError(f"{path} is UTF-16 or no text: save it as UTF-8")
    if first.startswith(b"["):
        found, how = "a JSON list", "jq -c '.[]'"
    elif first == b"{":
        found, how = "JSON whose objects go over several lines", "jq -c '.'"
    else:
        return
    raise InvalidInputError(
        f"{path} is {found}; JSONL is wanted, one object on each line, as `{how}` writes it "
        "(docs/evaluation.md, Formats)"
    )


def decoded_lines(
    path: Path, problems: Problems, decode: Callable[[bytes], Line]
) -> Iterator[tuple[Place, Line]]:
    """Each line that decodes, with its place and image; those that do not are counted.

    Raises:
        InvalidInputError: As `read_lines`.
    """
    for place, text in read_lines(path, problems):
        try:
            line = decode(text)
            found = replace(place, image_id=image_id_text(line.image_id))
        except (*WRONG, RowError) as error:
            _add_broken(place, text, error)
        else:
            yield found, line


def _add_broken(place: Place, line: bytes, error: Exception) -> None:
    """Count a line that did not decode; the message names the field."""
    if not line.endswith(b"\n") and not isinstance(error, msgspec.ValidationError | RowError):
        detail = "the file ends inside this line: whoever wrote it was stopped"
        place.add("truncated_line", detail)
    else:
        hint = ", and NaN and Infinity are none" if b"NaN" in line or b"Infinity" in line else ""
        place.add("broken_line", f"left out: {what_broke(error)}{hint}")


def what_broke(error: Exception) -> str:
    """One of `WRONG`, in words."""
    if isinstance(error, UnicodeDecodeError):
        return "not UTF-8: save the file as UTF-8"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def first_problem(problems: Problems) -> str:
    """For the message of an error: where to look."""
    for problem in problems.listed:
        where = problem.file if problem.line is None else f"{problem.file}:{problem.line}"
        return f"; {where}: {problem.kind}: {problem.detail}"
    return ""
