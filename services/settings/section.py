"""What every table of a run's TOML is, and the paths in it."""

import difflib
import os
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, ValidationError

from services.errors import SettingsError

_VARIABLE = re.compile(r"\$(\w+|\{[^}]*\})")


def expanded(path: str) -> str:
    """A path with `~` and `$VARIABLES` of the environment filled in, where settings are read.

    Raises:
        ValueError: There is no such variable.
    """
    found = os.path.expandvars(os.path.expanduser(path))  # noqa: PTH111 - pathlib has no variables
    if unknown := _VARIABLE.search(found):
        raise ValueError(f"{path}: the environment has no variable {unknown[0]}")
    return found


def _expanded(path: object) -> object:
    if isinstance(path, Path):
        return Path(expanded(str(path)))
    return expanded(path) if isinstance(path, str) else path


LocalPath = Annotated[Path, BeforeValidator(_expanded)]
"""A file or folder; `~` and `$VARIABLES` are filled in"""
PathOrName = Annotated[str, AfterValidator(expanded)]
"""The same as text, or a name, such as the hub's `owner/name`"""


def meant(name: str, known: Iterable[str]) -> str:
    """What to say of a name that is none of the known ones: the nearest of them, else all.

    Example: `meant("num_stepz", ["num_steps", "seed"]) == "did you mean num_steps?"`
    """
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"


class Section(BaseModel):
    """A table of the run's TOML."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @classmethod
    def read(cls, file: Path, *, wrong: str) -> Self:
        """The table that is a whole TOML file of its own.

        Args:
            file: The file.
            wrong: What to say of one that holds something else.

        Raises:
            SettingsError: It cannot be used.
        """
        try:
            return cls.model_validate(tomllib.loads(file.read_text()))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise SettingsError(f"{file} is not TOML: {error}") from error
        except ValidationError as error:
            first = error.errors()[0]
            where, why = ".".join(map(str, first["loc"])), first["msg"]
            if first["type"] == "extra_forbidden" and len(first["loc"]) == 1:
                why = f"no such setting; {meant(where, cls.model_fields)}"
            raise SettingsError(f"{file} {wrong}: {where}: {why}") from error
