"""`sgg-rl train` and `sgg-rl sft`: the trainer alone, beside services that run."""

from typing import Annotated

import typer

from cli.options import AllowChanges, Config, Overrides
from cli.settings import run_settings

Resume = Annotated[bool, typer.Option("--resume", help="Continue from the last checkpoint.")]


def train(
    config: Config = None,
    set_: Overrides = None,
    resume: Resume = False,
    allow_changes: AllowChanges = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check and print the settings only.")
    ] = False,
) -> None:
    """GRPO on running services.

    Example: sgg-rl train --config runs/demo/config.toml --resume
    """
    settings = run_settings(config, set_)
    if dry_run:
        from planning.dry_run import dry_run as check

        print(check(settings))
        return
    from cli import trainer_process

    trainer_process.train(settings, resume=resume, allow_changes=allow_changes)


def sft(
    config: Config = None,
    set_: Overrides = None,
    resume: Resume = False,
    allow_changes: AllowChanges = False,
) -> None:
    """Supervised fine-tuning on reference graphs.

    Example: sgg-rl sft --config toy-sft
    """
    from cli import trainer_process

    settings = run_settings(config, set_)
    trainer_process.sft(settings, resume=resume, allow_changes=allow_changes)
