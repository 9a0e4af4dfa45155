"""`sgg-rl run` and `sgg-rl demo`: a whole run on this machine."""

import sys
from typing import Annotated

import typer

from cli.options import AllowChanges, Config, Overrides
from cli.settings import demo_settings, run_settings

Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run of this name.")]


def run(
    config: Config = None,
    set_: Overrides = None,
    resume: Resume = False,
    allow_changes: AllowChanges = False,
) -> None:
    """A whole run on this machine: Redis, reward service, rollout servers, trainer.

    Example: sgg-rl run --config demo
    """
    from launcher.local_run import run_here

    settings = run_settings(config, set_)
    sys.exit(run_here(settings, resume=resume, allow_changes=allow_changes))


def demo(
    config: Config = None,
    set_: Overrides = None,
    data: Annotated[
        str | None, typer.Option(help="Train and evaluate on this dataset instead.")
    ] = None,
    resume: Resume = False,
    allow_changes: AllowChanges = False,
) -> None:
    """As `run`, with held-out evaluations before and after, and a report.

    Example: sgg-rl demo --config demo
    """
    from launcher.local_run import run_here

    settings = demo_settings(config, set_, data)
    sys.exit(run_here(settings, resume=resume, allow_changes=allow_changes, evaluate=True))
