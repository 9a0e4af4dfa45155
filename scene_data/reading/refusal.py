"""How a file is refused: where, what was found, what is wanted, and the page."""

import json
from typing import Any

from services.errors import InvalidInputError

PAGE = "docs/data.md"
"""Says how every layout looks"""


def refusal(file: object, found: str, wanted: str, *, row: str = "") -> InvalidInputError:
    """The error for a file that is not as it should be.

    Example: `refusal("a.h5", "labels[0] is 0", "labels count from 1")` says
    `a.h5: labels[0] is 0; labels count from 1 (docs/data.md)`

    Args:
        file: Its path.
        found: What is there.
        wanted: What should be there, or what to do.
        row: The part of the file, where it is about one.
    """
    place = f"{file}, {row}" if row else str(file)
    return InvalidInputError(f"{place}: {found}; {wanted} ({PAGE})")


def shown(value: Any, width: int = 60) -> str:
    """A value as JSON writes it, cut to a width."""
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= width else text[: width - 1] + "…"
