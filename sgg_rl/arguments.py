"""What the interface's functions are given, held against what they say they take."""

import functools
import inspect
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, ParamSpec, TypeVar

from pydantic import BeforeValidator, ConfigDict, Field, ValidationError, validate_call

from services.errors import InvalidInputError

P = ParamSpec("P")
T = TypeVar("T")

_CONFIG = ConfigDict(arbitrary_types_allowed=True, revalidate_instances="always")
_MEMBER = re.compile(r"[A-Z].*|.*\W.*|str|bytes")
"""What pydantic calls a member of a union, in a path of names and numbers"""


def one_of(words: str, *kinds: type) -> BeforeValidator:
    """Args: words: What is said where a value is none of the kinds, such as `a graph is …`."""

    def read(value: object) -> object:
        if not isinstance(value, kinds):
            raise ValueError(words)
        return value

    return BeforeValidator(read)


def _read_path(path: object) -> Path:
    if not isinstance(path, str | Path) or not str(path) or "\0" in str(path):
        raise ValueError("a path is a text or a Path")
    return Path(os.path.expanduser(path))  # noqa: PTH111 - pathlib's raises where nobody has that name


AnyPath = Annotated[str | Path, BeforeValidator(_read_path)]
"""A file or folder, `~` filled in"""
Side = Annotated[int, Field(gt=0, le=100_000)]
"""In pixels"""
Size = tuple[Side, Side]
"""Width and height"""


def checked(function: Callable[P, T]) -> Callable[P, T]:
    """The function, which refuses in one line what its signature does not allow.

    So it refuses what its messages to a service do not allow, and files that it cannot read or
    write. Graphs are checked to their last box.

    Raises:
        InvalidInputError: It is refused; the message names the argument, or the file.
    """
    ask = validate_call(config=_CONFIG)(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return ask(*args, **kwargs)
        except ValidationError as error:
            raise _refusal(function, error) from None
        except OSError as error:
            if error.filename is None:
                raise
            place = str(error.filename)[:200]
            raise InvalidInputError(
                f"cannot use {place}: {error.strerror}; mend this, or name another place"
            ) from error

    return call


def _refusal(function: Callable[..., object], error: ValidationError) -> InvalidInputError:
    """What is wrong with the argument, or the part of one, that fits best."""
    found = error.errors(include_url=False)
    best = max(found, key=lambda mistake: len(mistake["loc"]))
    beside = [mistake for mistake in found if mistake["loc"][:-1] == best["loc"][:-1]]
    first, path = best["loc"][:1], best["loc"][1:]
    names = {str(i): name for i, name in enumerate(inspect.signature(function).parameters)}
    place = [names.get(str(part), str(part)) for part in first]  # a number was given by place
    place += [str(part) for part in path if not _MEMBER.fullmatch(str(part))]
    why = dict.fromkeys(mistake["msg"].removeprefix("Value error, ") for mistake in beside)
    name = function.__qualname__
    given = "" if best["type"].endswith("_argument") else f", and not {_shown(best['input'])}"
    remedy = "" if "." in name else f" (help(sgg_rl.{name}) has an example)"
    where = ": ".join(filter(None, (name, ".".join(place))))
    return InvalidInputError(f"{where}: {' or '.join(why)}{given}{remedy}")


def _shown(value: object) -> str:
    """A short value itself, and the type of a long one."""
    try:
        text = repr(value)
    except ValueError:  # a number of over 4300 digits
        text = ""
    return text if text and len(text) <= 40 and text.isprintable() else f"a {type(value).__name__}"
