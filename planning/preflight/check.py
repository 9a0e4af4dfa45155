"""One thing that was looked for."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from services.errors import SggError

State = Literal["ok", "info", "warning", "missing"]
"""`missing` fails the doctor; `info` may be as it should, such as a service not started yet."""


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What was found, and for a problem what to do."""

    name: str
    state: State
    detail: str


def check(name: str, find: Callable[[], object], *, ok: str | None = None) -> CheckResult:
    """Look for one thing that must be here.

    Args:
        name: The thing's name.
        find: Says what it found, or raises.
        ok: What to say instead where it does not raise.
    """
    try:
        found = find()
        return CheckResult(name, "ok", str(found) if ok is None else ok)
    except SggError as error:
        return CheckResult(name, "missing", error.message)
    except Exception as error:  # noqa: BLE001 - a broken installation fails in any way
        return CheckResult(name, "missing", f"{type(error).__name__}: {error}")
