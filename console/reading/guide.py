"""What docs/metrics.md says of each number: its unit, its meaning, its healthy range, the remedy.

The page is the only source: its words are shown as they are, and its ranges are read from the start
of the cell that says what is healthy, such as `under 0.1` or `0.95..1.05`.
"""

import re
from dataclasses import dataclass
from functools import cache

from services.bundled import bundled

_CELL = re.compile(r"(?<!\\)\|")
_LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")
_NUMBER = r"(\d+(?:\.\d+)?(?:e-?\d+)?)"
_UNDER = re.compile(rf"under {_NUMBER}\b")
_BETWEEN = re.compile(rf"{_NUMBER}\.\.{_NUMBER}")
_WITHIN = re.compile(rf"within {_NUMBER} of {_NUMBER}")


@dataclass(frozen=True, slots=True)
class Guide:
    """A row of the page."""

    key: str
    unit: str
    meaning: str
    healthy: str
    """What is healthy, and what to do when it is not; empty where that is left open."""
    low: float | None
    high: float | None
    """The healthy range; None where the page names no bound."""

    def is_healthy(self, value: float) -> bool:
        """Whether a value is within the range, as far as there is one."""
        above = self.low is None or value >= self.low
        return above and (self.high is None or value <= self.high)


@cache
def guides() -> dict[str, Guide]:
    """By key of `metrics.jsonl`."""
    found = {}
    for line in bundled("docs/metrics.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in _CELL.split(line)[1:-1]]
        if len(cells) != 4 or not cells[0].startswith("`"):
            continue
        unit, meaning, healthy = map(_plain, cells[1:])
        for key in re.findall(r"`(\w+)`", cells[0]):
            found[key] = Guide(key, unit, meaning, healthy, *healthy_range(healthy))
    return found


def healthy_range(healthy: str) -> tuple[float | None, float | None]:
    """The bounds at the start of a cell; None where it names none.

    Example: `healthy_range("under 0.1 after the first steps") == (None, 0.1)`
    """
    if found := _UNDER.match(healthy):
        return None, float(found[1])
    if found := _BETWEEN.match(healthy):
        return float(found[1]), float(found[2])
    if found := _WITHIN.match(healthy):
        width, middle = float(found[1]), float(found[2])
        return middle - width, middle + width
    return (None, 0.0) if re.match(r"0(\.\s|$)", healthy) else (None, None)


def _plain(cell: str) -> str:
    """Without Markdown's marks."""
    return _LINK.sub(r"\1", cell).replace("`", "").replace("\\|", "|")
