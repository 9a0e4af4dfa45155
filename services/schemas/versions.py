"""Which release's messages a program can read: their version, and the rule that it follows."""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    Field,
    ValidationError,
)
from pydantic_core import from_json

from services.schemas.common import Message

SCHEMA_VERSION = "1.0"
"""`MAJOR.MINOR` of all that the services say to one another and that a run keeps.

A release that adds a field raises MINOR: earlier programs ignore the field. One whose messages an
earlier program would misread raises MAJOR: earlier programs refuse them and say so. What says no
version is of a release before this one.
"""

_MAJOR, _MINOR = map(int, SCHEMA_VERSION.split("."))
M = TypeVar("M", bound=BaseModel)


def _as_text(version: Any) -> Any:
    """Entries of the streams had the number 1 before."""
    return "1.0" if version == 1 and type(version) is int else version


def _readable(version: str) -> str:
    if int(version.split(".")[0]) > _MAJOR:
        raise ValueError(
            f"its schema version is {version}, and this program reads {_MAJOR}.x: another release "
            "wrote it; install that release here too (docs/operations.md, Upgrade)"
        )
    return version


class Versioned(Message):
    """A message between services, or a file of a run, that another release may read.

    Example: `{"schema_version": "1.0", …}`
    """

    schema_version: Annotated[str, BeforeValidator(_as_text), AfterValidator(_readable)] = Field(
        default=SCHEMA_VERSION,
        pattern=r"^[0-9]{1,4}\.[0-9]{1,4}$",
        validation_alias=AliasChoices("schema_version", "version"),
    )
    """`MAJOR.MINOR` of the release that wrote it; a higher MAJOR than one's own is refused."""


def parse(kind: type[M], content: bytes | str | dict[str, Any]) -> M:
    """A message; one of a later release without the fields that only that release knows.

    Args:
        kind: Its type.
        content: Its JSON, or what that stands for.

    Raises:
        ValidationError: It is no such message, or of a release that this one cannot read.
    """
    try:
        return _validated(kind, content)
    except ValidationError:
        if not is_later(content):
            raise
    return _validated(kind, content, extra="ignore")


def is_later(content: bytes | str | dict[str, Any]) -> bool:
    """Whether a later release of the same MAJOR says that it wrote this."""
    try:
        tree = content if isinstance(content, dict) else from_json(content)
        major, minor = map(int, tree["schema_version"].split("."))
    except (ValueError, TypeError, KeyError, AttributeError):
        return False
    return major == _MAJOR and minor > _MINOR


def _validated(
    kind: type[M],
    content: bytes | str | dict[str, Any],
    extra: Literal["ignore"] | None = None,
) -> M:
    if isinstance(content, dict):
        return kind.model_validate(content, extra=extra)
    return kind.model_validate_json(content, extra=extra)
