"""JSON files that are too large for memory, item by item."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from services.errors import InvalidInputError

CHUNK = 1 << 20
"""Characters read at a time."""
MAX_ITEM = 1 << 26
"""Characters of the largest item that is waited for; what is longer is broken JSON."""

_SPACE = re.compile(r"[ \t\n\r]*")
_NUMBER = re.compile(r"[-+0-9.eE]*")
_DECODER = json.JSONDecoder()


def stream_items(path: Path, key: str | None = None) -> Iterator[Any]:
    """The items of a list, one at a time: memory holds the largest item, not the file.

    Args:
        path: Of the file: the list itself, or an object that has it under `key`.
        key: None where the file is the list.

    Raises:
        InvalidInputError: The file is not JSON to its end, or has no such list.
    """
    with _Reader.open(path) as reader:
        if key is None:
            yield from reader.items()
            reader.end()
            return
        found = False
        for name in reader.names():
            if name == key:
                found = True
                yield from reader.items()
            else:
                reader.value()
        reader.end()
        if not found:
            raise InvalidInputError(f"{path} has no list {key!r}")


def read_members(path: Path, *, without: str) -> dict[str, Any]:
    """The members of an object, but for one list, which is read past.

    Raises:
        InvalidInputError: The file is not an object in JSON.
    """
    members: dict[str, Any] = {}
    with _Reader.open(path) as reader:
        for name in reader.names():
            if name != without:
                members[name] = reader.value()
            else:
                for _ in reader.items():
                    pass
        reader.end()
    return members


class _Reader:
    """A window on a file, moved along as values are taken from it."""

    def __init__(self, file: TextIO, path: Path) -> None:
        self._file = file
        self._path = path
        self._text = ""
        self._at = 0
        self._passed = 0

    @classmethod
    def open(cls, path: Path) -> "_Reader":
        try:
            return cls(path.open(encoding="utf-8-sig"), path)
        except OSError as error:
            raise InvalidInputError(f"cannot read {path}: {error.strerror}") from error

    def __enter__(self) -> "_Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def items(self) -> Iterator[Any]:
        """Values of the list that starts here."""
        self._take("[")
        if self._peek() == "]":
            self._take("]")
            return
        while True:
            yield self.value()
            if self._take(",]") == "]":
                return

    def names(self) -> Iterator[str]:
        """Names of the object that starts here; the caller takes each one's value."""
        self._take("{")
        if self._peek() == "}":
            self._take("}")
            return
        while True:
            if self._peek() != '"':
                raise self._broken("a name in quotes was expected")
            yield str(self.value())
            if self._take(",}") == "}":
                return

    def value(self) -> Any:
        """The value that starts here, and the colon after it where it is a name."""
        self._peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except (ValueError, RecursionError) as error:
                if len(self._text) - self._at > MAX_ITEM or not self._more():
                    raise self._broken(str(error)) from error
                continue
            if self._may_go_on(value, end) and self._more():
                continue
            self._at = end
            if self._peek() == ":":
                self._take(":")
            return value

    def _may_go_on(self, value: Any, end: int) -> bool:
        """Whether it is a number that the window's end may have cut: `1.` is read as 1."""
        rest = _NUMBER.match(self._text, end)
        return isinstance(value, int | float) and rest is not None and rest.end() == len(self._text)

    def end(self) -> None:
        """Nothing but space may follow."""
        if self._peek():
            raise self._broken("there is more after the end")

    def _peek(self) -> str:
        """The next character that is not space; empty at the end."""
        while True:
            space = _SPACE.match(self._text, self._at)
            self._at = space.end() if space else self._at
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def _take(self, wanted: str) -> str:
        found = self._peek()
        if not found or found not in wanted:
            raise self._broken(
                f"{' or '.join(wanted)} was expected, not {found or 'the end of the file'}"
            )
        self._at += 1
        return found

    def _more(self) -> bool:
        """Move the window on; a long value doubles it, so that it is tried few times."""
        try:
            chunk = self._file.read(max(CHUNK, len(self._text) - self._at))
        except ValueError as error:
            raise self._broken(str(error)) from error
        self._passed += self._at
        self._text = self._text[self._at :] + chunk
        self._at = 0
        return bool(chunk)

    def _broken(self, reason: str) -> InvalidInputError:
        return InvalidInputError(
            f"{self._path} is not the JSON that was expected, after character "
            f"{self._passed + self._at}: {reason}"
        )
