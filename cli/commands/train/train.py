"""`sgg-rl train` and `sgg-rl sft`: the trainer alone, beside services that run."""

from typing import TYPE_CHECKING, Annotated

import typer

from cli.options import AllowChanges, Config, Overrides
from cli.settings import run_settings

if TYPE_CHECKING:
    from planning.preflight.inputs import Job
    from services.settings import Settings

Resume = Annotated[bool, typer.Option("--resume", help="Continue from the last checkpoint.")]

DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Only check: settings, steps, memory, model, data, prompts."),
]


def train(
    config: Config = None,
    set_: Overrides = None,
    resume: Resume = False,
    allow_changes: AllowChanges = False,
    dry_run: DryRun = False,
) -> None:
    """GRPO on running services.

    Example: sgg-rl train --config runs/demo/config.toml --resume
    """
    settings = run_settings(config, set_)
    if dry_run:
        _print_dry_run(settings, "train")
        return
    from cli import trainer_process

    trainer_process.train(settings, resume=resume, allow_changes=allow_changes)


def sft(
    config: Config = None,
    set_: Overrides = None,
    resume: Resume = False,
    allow_changes: AllowChanges = False,
    dry_run: DryRun = False,
) -> None:
    """Supervised fine-tuning on reference graphs.

    Example: sgg-rl sft --config toy-sft
    """
    settings = run_settings(config, set_)
    if dry_run:
        _print_dry_run(settings, "sft")
        return
    from cli import trainer_process

    trainer_process.sft(settings, resume=resume, allow_changes=allow_changes)


def _print_dry_run(settings: "Settings", job: "Job") -> None:
    from planning.dry_run import dry_run

    print(dry_run(settings, job))
