"""`sgg-rl doctor`: is everything here that a run needs?"""

import dataclasses
import json
import sys
import textwrap
from contextlib import redirect_stdout

from planning.preflight.check import CheckResult, State
from planning.preflight.machine import machine_checks
from planning.preflight.run_checks import run_checks
from services.host.printable import printable
from services.settings import Settings

_WIDTH = 80
_LABELS: dict[State, str] = {
    "ok": "ok",
    "info": "info",
    "warning": "WARNING",
    "missing": "MISSING",
}


def examine(settings: Settings | None, *, as_json: bool) -> None:
    """Print what is here and what is missing; exit 1 when something needed is.

    Args:
        settings: Of a run; without them only what every run needs is looked for.
        as_json: For scripts.
    """
    with redirect_stdout(sys.stderr):  # DeepSpeed says there what it has found
        found = machine_checks()
        if settings is not None:
            found += run_checks(settings)
    if as_json:
        print(json.dumps([dataclasses.asdict(result) for result in found], indent=2))
    else:
        print(printable("\n".join(map(line, found))))
    if any(result.state == "missing" for result in found):
        sys.exit(1)


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
