"""A check's result, as `sgg-rl doctor` prints it."""

import textwrap

from planning.preflight.check import CheckResult, State

_WIDTH = 80
_LABELS: dict[State, str] = {
    "ok": "ok",
    "info": "info",
    "warning": "WARNING",
    "missing": "MISSING",
}


def line(result: CheckResult) -> str:
    """A check's result on as few lines of a terminal as it fits on."""
    head = f"{_LABELS[result.state]:8} {result.name}: "
    one_line = " ".join(result.detail.split())
    return textwrap.fill(
        one_line,
        _WIDTH,
        initial_indent=head,
        subsequent_indent=" " * 9,
        break_long_words=False,
        break_on_hyphens=False,
    )
