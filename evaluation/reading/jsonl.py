"""Lines of a JSONL file, decoded one at a time; a line that is not right costs itself."""

from collections.abc import Iterator
from pathlib import Path

import msgspec

from evaluation.reading.problems import Place, Problems
from services.errors import InvalidInputError

WRONG = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding of text from anywhere raises."""


def read_lines(path: Path, problems: Problems) -> Iterator[tuple[Place, bytes]]:
    """Each line that is not blank, with its place; memory does not grow with the file.

    Raises:
        InvalidInputError: It cannot be read.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.isspace():
                    yield Place(problems, str(path), number), line
    except OSError as error:
        raise InvalidInputError(f"{path} cannot be read: {error.strerror}") from error


def add_broken(place: Place, line: bytes, error: Exception) -> None:
    """Count a line that did not decode; the message names the field."""
    if not line.endswith(b"\n") and not isinstance(error, msgspec.ValidationError):
        detail = "the file ends inside this line: whoever wrote it was stopped"
        place.add("truncated_line", detail)
    else:
        text = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        place.add("broken_line", f"left out: {text}")


def first_problem(problems: Problems) -> str:
    """For the message of an error: where to look."""
    for problem in problems.listed:
        where = problem.file if problem.line is None else f"{problem.file}:{problem.line}"
        return f"; {where}: {problem.kind}: {problem.detail}"
    return ""
