"""JSON files that are too large for memory, item by item."""

import json
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from scene_data.reading.refusal import refusal
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
        path: The file: the list itself, or an object that has it under `key`.
        key: None where the file is the list.

    Raises:
        InvalidInputError: The file is not JSON to its end, or has no such list.
    """
    with _opened(path, key) as reader:
        yield from reader.items()
        reader.rest(key)


def stream_members(path: Path, key: str | None = None) -> Iterator[tuple[str, Any]]:
    """Names and values of an object, one at a time.

    Args:
        path: The file: the object itself, or an object that has it under `key`.
        key: None where the file is the object.

    Raises:
        InvalidInputError: The file is not JSON to its end, or has no such object.
    """
    with _opened(path, key) as reader:
        for name in reader.names():
            yield name, reader.value()
        reader.rest(key)


def stream_values(path: Path) -> Iterator[Any]:
    """The items of a list, or values that follow one another, on lines or over several.

    Raises:
        InvalidInputError: The file is not JSON to its end.
    """
    with _opened(path) as reader:
        if reader.kind() == "[":
            yield from reader.items()
            reader.rest(None)
        while reader.kind():
            yield reader.value()


def member_kinds(path: Path) -> Iterator[tuple[str, str]]:
    """Names of an object with the first character of their values; values are read past.

    Raises:
        InvalidInputError: The file is not an object in JSON.
    """
    with _opened(path) as reader:
        for name in reader.names():
            yield name, reader.kind()
            reader.skip()


def read_members(path: Path, *, without: Collection[str] = ()) -> dict[str, Any]:
    """The members of an object, but for some that are read past.

    Raises:
        InvalidInputError: The file is not an object in JSON.
    """
    members: dict[str, Any] = {}
    with _opened(path) as reader:
        for name in reader.names():
            if name in without:
                reader.skip()
            else:
                members[name] = reader.value()
        reader.end()
    return members


@contextmanager
def _opened(path: Path, key: str | None = None) -> Iterator["_Reader"]:
    """A reader of the file's value, or of its member `key`."""
    try:
        file = path.open(encoding="utf-8-sig")
    except OSError as error:
        raise InvalidInputError(f"cannot read {path}: {error.strerror}") from error
    with file:
        reader = _Reader(file, path)
        if key is not None:
            reader.find(key)
        yield reader


class _Reader:
    """A window on a file, moved along as values are taken from it."""

    def __init__(self, file: TextIO, path: Path) -> None:
        self._file = file
        self._path = path
        self._text = ""
        self._at = 0
        self._passed = 0

    def find(self, key: str) -> None:
        """Go to the value of a member of the object that starts here.

        Raises:
            InvalidInputError: There is no such member.
        """
        seen = []
        for name in self.names():
            if name == key:
                return
            seen.append(name)
            self.skip()
        raise refusal(
            self._path, f"its members are {', '.join(seen) or 'none'}", f"{key!r} is wanted"
        )

    def rest(self, key: str | None) -> None:
        """Read to the end, from the end of the file's value or of its member `key`."""
        while key is not None and self._take(",}") == ",":
            self.value()  # the name
            self.skip()
        self.end()

    def skip(self) -> None:
        """Read past the value that starts here, however long it is."""
        if self.kind() == "[":
            for _ in self.items():
                pass
        elif self.kind() == "{":
            for _ in self.names():
                self.skip()
        else:
            self.value()

    def items(self) -> Iterator[Any]:
        """Values of the list that starts here."""
        return (self.value() for _ in self._entries("[", "]"))

    def names(self) -> Iterator[str]:
        """Names of the object that starts here; the caller takes each one's value."""
        for _ in self._entries("{", "}"):
            if self.kind() != '"':
                raise self._broken(f"found {self._found()}, and a name in quotes is wanted")
            yield str(self.value())

    def _entries(self, opening: str, closing: str) -> Iterator[None]:
        """Once for each entry of the list or object that starts here; the caller takes it."""
        self._start(opening)
        end = self._take(closing) if self.kind() == closing else ""
        while end != closing:
            yield
            end = self._take("," + closing)

    def value(self) -> Any:
        """The value that starts here, and the colon after it where it is a name."""
        self.kind()
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
            if self.kind() == ":":
                self._take(":")
            return value

    def _may_go_on(self, value: Any, end: int) -> bool:
        """Whether it is a number that the window's end may have cut: `1.` is read as 1."""
        rest = _NUMBER.match(self._text, end)
        return isinstance(value, int | float) and rest is not None and rest.end() == len(self._text)

    def end(self) -> None:
        """Nothing but space may follow."""
        if self.kind():
            raise self._broken(f"found {self._found()} after the end")

    def kind(self) -> str:
        """The character that the next value starts with; empty at the end."""
        while True:
            space = _SPACE.match(self._text, self._at)
            self._at = space.end() if space else self._at
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def _start(self, bracket: str) -> None:
        """Go into a list or an object."""
        if self.kind() != bracket:
            kind = {"[": "a list", "{": "an object"}
            found = kind.get(self.kind()) or self._found()
            raise refusal(
                self._path,
                f"found {found} after character {self._passed + self._at}",
                f"{kind[bracket]} is wanted there",
            )
        self._at += 1

    def _take(self, wanted: str) -> str:
        found = self.kind()
        if not found or found not in wanted:
            raise self._broken(f"found {self._found()}, and {' or '.join(wanted)} is wanted")
        self._at += 1
        return found

    def _found(self) -> str:
        return self.kind() or "the end of the file"

    def _more(self) -> bool:
        """Move the window on; a long value doubles it, so that it is tried few times."""
        try:
            chunk = self._file.read(max(CHUNK, len(self._text) - self._at))
        except UnicodeDecodeError as error:
            raise refusal(self._path, f"not UTF-8 text ({error})", "save it as UTF-8") from error
        self._passed += self._at
        self._text = self._text[self._at :] + chunk
        self._at = 0
        return bool(chunk)

    def _broken(self, reason: str) -> InvalidInputError:
        return refusal(
            self._path,
            f"broken JSON after character {self._passed + self._at}",
            f"{reason.rstrip('.')}: write the file again",
        )
