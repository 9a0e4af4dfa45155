"""`sgg-rl doctor`: is everything here that a run needs?"""

import sys
import textwrap
from contextlib import redirect_stdout
from typing import TYPE_CHECKING

from cli.options import AsJson, Config, Overrides
from cli.settings import OWN_CONFIG, run_settings
from cli.views.as_json import print_json
from services.printable import printable

if TYPE_CHECKING:
    from planning.preflight.check import CheckResult

_WIDTH = 80


def doctor(config: Config = None, set_: Overrides = None, as_json: AsJson = False) -> None:
    """Check what this machine has, and what a run needs where one is named or run.toml is here.

    Example: sgg-rl doctor --config demo
    """
    from planning.preflight.machine import machine_checks
    from planning.run_checks import run_checks

    is_of_run = config or set_ or OWN_CONFIG.is_file()
    settings = run_settings(config, set_) if is_of_run else None
    with redirect_stdout(sys.stderr):  # DeepSpeed says there what it has found
        results = machine_checks()
        if settings is not None:
            results += run_checks(settings)
    if as_json:
        print_json(results)
    else:
        print(printable("\n".join(map(check_line, results))))
    if any(result.state == "missing" for result in results):
        sys.exit(1)


def check_line(result: "CheckResult") -> str:
    """A check's result on as few lines of a terminal as it fits on."""
    is_wrong = result.state in ("warning", "missing")
    head = f"{result.state.upper() if is_wrong else result.state:8} {result.name}: "
    one_line = " ".join(result.detail.split())
    return textwrap.fill(
        one_line,
        _WIDTH,
        initial_indent=head,
        subsequent_indent=" " * 9,
        break_long_words=False,
        break_on_hyphens=False,
    )
