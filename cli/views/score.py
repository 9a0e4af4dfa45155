"""What `sgg-rl score` prints of all completions together."""

import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, pstdev

from rich.text import Text

from cli.views.safe_text import safe
from cli.views.score_breakdown import breakdown
from launcher.views.terminal import SafeConsole
from reward_service.explain.explainer import Explanation

_STATUS_WIDTH = len("schema_violation")
_NUMBER_WIDTH = 5
_ID_WIDTH = 60


def complain(message: str) -> None:
    """Print a line on the standard error."""
    print(f"sgg-rl: {safe(message, 1000)}", file=sys.stderr)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Line:
    """What is kept of each of many completions."""

    name: str
    status: str
    """With `(truncated)` after it where that is so"""
    num_objects: int
    num_triplets: int
    total: float | None
    max_total: float | None
    terms: dict[str, float]
    dropped: Counter[str]


class Report:
    """Prints explanations: each as JSON, or in full, or in a line; then a summary."""

    def __init__(self, *, as_json: bool, detail: bool) -> None:
        self._as_json, self._detail = as_json, detail
        self._lines: list[_Line] = []
        self._first: Explanation | None = None
        """Waits: it is shown in full if it stays the only one"""
        self._console = SafeConsole(markup=False, emoji=False, highlight=False)

    def add(self, name: str, explanation: Explanation) -> None:
        """Take up one completion, and print what does not wait for others."""
        if self._as_json:
            self._print(json.dumps({"id": name, **asdict(explanation)}, allow_nan=False))
            return
        self._lines.append(_line(name, explanation))
        if self._detail:
            self._show(explanation)
        elif len(self._lines) == 1:
            self._first = explanation
        else:
            if self._first:
                self._print(*_heading(self._lines[0]), _row(self._lines[0], self._lines[0]))
                self._first = None
            self._print(_row(self._lines[-1], self._lines[0]))

    def end(self) -> None:
        """Print the rest."""
        if self._first:
            self._show(self._first)
        elif len(self._lines) > 1:
            self._print("", *_summary(self._lines))

    def _show(self, explanation: Explanation) -> None:
        if len(self._lines) > 1:
            self._console.print()
        for part in breakdown(self._lines[-1].name, explanation):
            self._console.print(part)

    def _print(self, *lines: str) -> None:
        """Lines that nothing folds: for other programs, or as wide as they are."""
        for line in lines:
            self._console.print(Text(line), soft_wrap=True)


def _line(name: str, e: Explanation) -> _Line:
    return _Line(
        name=name,
        status=f"{e.status} (truncated)" if e.truncated else e.status,
        num_objects=len(e.objects),
        num_triplets=len(e.triplets),
        total=e.total,
        max_total=e.max_total,
        terms={term.name: term.value for term in e.terms},
        dropped=Counter(part.reason for part in e.dropped),
    )


def _columns(first: _Line) -> list[tuple[str, str, int]]:
    """Two lines of each number's heading, and its width. The first completion decides for all."""
    scored = ["total", *first.terms]
    names = [*(scored if first.terms else ["objects", "relationships"]), "dropped"]
    parts = [name.rpartition("_")[::2] for name in names]
    return [(over, name, max(_NUMBER_WIDTH, len(over), len(name))) for over, name in parts]


def _heading(first: _Line) -> Iterator[str]:
    columns = _columns(first)
    over = " ".join(f"{text:>{width}}" for text, _, width in columns)
    if over.strip():
        yield f"{'':{_STATUS_WIDTH}} {over}"
    names = " ".join(f"{text:>{width}}" for _, text, width in columns)
    yield f"{'status':{_STATUS_WIDTH}} {names}  id"


def _row(line: _Line, first: _Line) -> str:
    if first.terms:
        scored = [line.total, *(line.terms.get(term) for term in first.terms)]
        texts = ["-" if value is None else f"{value:.2f}" for value in scored]
    else:
        texts = [str(line.num_objects), str(line.num_triplets)]
    texts.append(str(line.dropped.total() or "-"))
    cells = zip(texts, _columns(first), strict=True)
    numbers = " ".join(f"{text:>{width}}" for text, (_, _, width) in cells)
    status = line.status.partition(" ")[0]
    return f"{status:{_STATUS_WIDTH}} {numbers}  {safe(line.name, _ID_WIDTH)}"


def _summary(lines: Sequence[_Line]) -> Iterator[str]:
    yield f"{len(lines)} completions: {_counts(Counter(line.status for line in lines))}"
    dropped = sum((line.dropped for line in lines), Counter[str]())
    yield f"dropped parts: {_counts(dropped) or 'none'}"
    scored = [line for line in lines if line.total is not None]
    if not scored:
        return
    totals = [line.total or 0.0 for line in scored]
    mean, deviation = fmean(totals), pstdev(totals)
    yield f"total: mean {mean:.3f} of {scored[0].max_total:g}, standard deviation {deviation:.3f}"
    for term in scored[0].terms:
        yield f"  {term}: mean {fmean(line.terms[term] for line in scored):.3f}"


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counter.most_common())
