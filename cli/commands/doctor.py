"""`sgg-rl doctor`: is everything here that a run needs?"""

import dataclasses
import json
import sys
from contextlib import redirect_stdout

from cli.options import AsJson, Config, Overrides
from cli.settings import run_settings
from services.printable import printable


def doctor(config: Config = None, set_: Overrides = None, as_json: AsJson = False) -> None:
    """Check what this machine has, with --config what that run needs; say what is missing."""
    from cli.views.doctor import line
    from planning.preflight.machine import machine_checks
    from planning.run_checks import run_checks

    settings = run_settings(config, set_) if config or set_ else None
    with redirect_stdout(sys.stderr):  # DeepSpeed says there what it has found
        results = machine_checks()
        if settings is not None:
            results += run_checks(settings)
    if as_json:
        print(json.dumps([dataclasses.asdict(result) for result in results], indent=2))
    else:
        print(printable("\n".join(map(line, results))))
    if any(result.state == "missing" for result in results):
        sys.exit(1)
