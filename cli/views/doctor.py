"""A finding of `sgg-rl doctor` as text."""

import textwrap

from planning.preflight.result import Finding, State

_WIDTH = 80
_LABELS: dict[State, str] = {
    "ok": "ok",
    "info": "info",
    "warning": "WARNING",
    "missing": "MISSING",
}


def line(finding: Finding) -> str:
    """A finding on as few lines of a terminal as it fits on."""
    head = f"{_LABELS[finding.state]:8} {finding.name}: "
    one_line = " ".join(finding.detail.split())
    return textwrap.fill(
        one_line,
        _WIDTH,
        initial_indent=head,
        subsequent_indent=" " * 9,
        break_long_words=False,
        break_on_hyphens=False,
    )
