"""The filters of the page of rollouts, as they stand in its address.

Example: `?step_from=100&predicate=riding&sort=lowest`
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args
from urllib.parse import urlencode

from services.errors import InvalidInputError
from services.run_folder.index import Sort
from services.run_folder.index_line import RolloutFilter
from services.run_folder.records import GroupState
from services.schemas.rewards import Status

SORTS: dict[Sort, str] = {
    "newest": "newest first",
    "oldest": "oldest first",
    "highest": "highest reward first",
    "lowest": "lowest reward first",
    "widest": "widest spread first",
}
STATES: tuple[GroupState, ...] = get_args(GroupState)
STATUSES: tuple[Status, ...] = get_args(Status)
_WHOLE = ("step_from", "step_to", "version")
_NUMBERS = ("reward_min", "reward_max", "std_min")
_TEXTS = ("state", "status", "predicate", "object", "image", "text")
_DIGITS = 18
"""Digits of a number in an address: it fits 64 bits"""
_SAID = {"yes": True, "no": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What an address asks for."""

    values: dict[str, str]
    """As they were written, those that are not empty"""
    wanted: RolloutFilter
    sort: Sort
    cursor: str | None
    problems: tuple[str, ...]
    """Values that are no such thing, in sentences; they are left out"""

    def address(self, cursor: str | None) -> str:
        """The query of another page of the same."""
        more = {"cursor": cursor} if cursor else {}
        return urlencode({**self.values, **more})


def read_filters(query: Mapping[str, str]) -> Asked:
    """The filters of an address; what cannot be read is said, and the rest holds."""
    known = (*_WHOLE, *_NUMBERS, *_TEXTS, "truncated", "sort")
    values = {name: query[name].strip() for name in known if query.get(name, "").strip()}
    fields: dict[str, Any] = {}
    problems = []
    for name, text in values.items():
        try:
            if name != "sort":
                fields[name] = _value(name, text)
        except ValueError as error:
            problems.append(f"{name.replace('_', ' ')} {error}.")
    sort = values.get("sort", "newest")
    if sort not in SORTS:
        problems.append(f"sort is one of {', '.join(SORTS)}, not {sort!r}.")
        sort = "newest"
    return Asked(
        values=values,
        wanted=RolloutFilter(**fields),
        sort=sort,  # type: ignore[arg-type]
        cursor=query.get("cursor") or None,
        problems=tuple(problems),
    )


def _value(name: str, text: str) -> Any:
    if name == "truncated":
        return _SAID[_one_of(text, tuple(_SAID))]
    if name == "state":
        return _one_of(text, STATES)
    if name == "status":
        return _one_of(text, STATUSES)
    if name in _TEXTS:
        return text
    if name in _WHOLE:
        if (number := whole_number(text)) is None:
            raise ValueError(f"is a whole number, not {text[:40]!r}")
        return number
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"is a number, not {text[:40]!r}") from None


def _one_of(text: str, allowed: tuple[str, ...]) -> str:
    if text not in allowed:
        raise ValueError(f"is one of {', '.join(allowed)}, not {text[:40]!r}")
    return text


def step_of(text: str) -> int | None:
    """A step in an address.

    Raises:
        InvalidInputError: It is no number.
    """
    if not text:
        return None
    if (number := whole_number(text)) is None:
        raise InvalidInputError(f"step is a whole number, not {text[:40]!r}")
    return number


def whole_number(text: str) -> int | None:
    """A number from 0 to 10^18 - 1, as an address has it; None where it is none."""
    is_one = text.isascii() and text.isdigit() and len(text) <= _DIGITS
    return int(text) if is_one else None
