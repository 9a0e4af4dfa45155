"""`predictions.jsonl`: appended to in order, and taken up again after any end."""

import errno
import fcntl
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Self

import msgspec

from evaluation.reading.lines import GraphLine
from services.errors import ConflictError, SggError

_CHUNK_BYTES = 1 << 20


class PredictionsFile:
    """Lines of images, in the order of the dataset. Each is on its way to disk when `append` ends.

    Example: `with PredictionsFile(folder / "predictions.jsonl") as predictions:
    predictions.append(line)`
    """

    def __init__(self, path: Path) -> None:
        """Opens for appending. A last line without its end, left by a killed run, is cut off.

        Raises:
            ConflictError: Another process writes it.
            SggError: It cannot be written.
        """
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = path.open("ab", buffering=0)
            fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._stream.truncate(_whole_bytes(path))
        except BlockingIOError as error:
            raise ConflictError(
                f"another process writes {path}: wait for it, or stop it"
            ) from error
        except OSError as error:
            raise _not_written(path, error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def lines(self) -> Iterator[GraphLine]:
        """What is there.

        Raises:
            ConflictError: A line is none of ours.
        """
        with self._path.open("rb") as stream:
            for number, text in enumerate(stream, start=1):
                try:
                    yield _DECODER.decode(text)
                except msgspec.DecodeError as error:
                    raise ConflictError(
                        f"{self._path}, line {number} is not a prediction ({error}): move the file "
                        "away, or give another --output"
                    ) from error

    def append(self, line: GraphLine) -> None:
        """Add an image.

        Raises:
            SggError: The disk is full, or the like.
        """
        text = _encoded(line)
        try:
            if self._stream.write(text) != len(text):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise _not_written(self._path, error) from error

    def replace(self, changed: Mapping[int, GraphLine]) -> None:
        """Put other lines in the place of some, by number from 0; all or none are replaced."""
        draft = self._path.with_suffix(".draft")
        try:
            with self._path.open("rb") as old, draft.open("wb") as new:
                for number, text in enumerate(old):
                    new.write(_encoded(changed[number]) if number in changed else text)
            before, self._stream = self._stream, draft.open("ab", buffering=0)
            fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            draft.replace(self._path)
            before.close()
        except OSError as error:
            raise _not_written(self._path, error) from error


_DECODER = msgspec.json.Decoder(GraphLine)


_LINE_ENDS = {c.encode(): f"\\u{ord(c):04x}".encode() for c in "\u0085\u2028\u2029"}
"""Which many readers take for one, and JSON does not escape"""


def _encoded(line: GraphLine) -> bytes:
    text = msgspec.json.encode(line)
    for character, escaped in _LINE_ENDS.items():
        text = text.replace(character, escaped)
    return text + b"\n"


def _whole_bytes(path: Path) -> int:
    """Length up to the last line end, looked for from behind."""
    with path.open("rb") as stream:
        end = stream.seek(0, 2)
        while end:
            start = max(0, end - _CHUNK_BYTES)
            stream.seek(start)
            if (found := stream.read(end - start).rfind(b"\n")) >= 0:
                return start + found + 1
            end = start
    return 0


def _not_written(path: Path, error: OSError) -> SggError:
    return SggError(
        f"cannot write {path}: {error.strerror}; mend this, then run the same command again"
    )
