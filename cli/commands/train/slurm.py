"""`sgg-rl slurm`: a run as a Slurm job."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cli.options import AllowChanges, AsJson, Config, Overrides, Run
from cli.settings import run_settings, settings_of_run
from cli.views.as_json import print_json
from services.printable import printable

if TYPE_CHECKING:
    from services.settings import Settings

slurm_app = typer.Typer(help="A run as a Slurm job: docs/deploy/slurm.md.", no_args_is_help=True)

Job = Annotated[
    Literal["train", "sft", "infer"],
    typer.Option(help="GRPO with its services, supervised fine-tuning, or batch inference."),
]
Data = Annotated[str | None, typer.Option(help="What to infer; data.heldout when it is not given.")]


@slurm_app.command()
def render(
    config: Config = None,
    job: Job = "train",
    set_: Overrides = None,
    data: Data = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write it here.")] = None,
) -> None:
    """Print the batch script; nothing is submitted or made.

    Example: sgg-rl slurm render --config run.toml --output job.sh
    """
    from deploy.slurm.render import render as render_script

    script = render_script(_settings(config, set_, job), job, data=data)
    if output is None:
        print(script, end="")
    else:
        output.write_text(script)


@slurm_app.command()
def submit(
    config: Config = None,
    job: Job = "train",
    set_: Overrides = None,
    data: Data = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the run's checkpoints.")
    ] = False,
    allow_changes: AllowChanges = False,
    after: Annotated[str | None, typer.Option(help="A job that must end well before it.")] = None,
    rehearse: Annotated[
        bool, typer.Option("--rehearse", help="A rehearsal on one node must end well before it.")
    ] = False,
    parsable: Annotated[bool, typer.Option("--parsable", help="Print the job's id alone.")] = False,
) -> None:
    """Put the job into the queue, with its settings, secrets and script in the run's folder.

    Example: sgg-rl slurm submit --config run.toml --resume
    """
    from deploy.slurm.submit import submit as submit_job

    settings = _settings(config, set_, job)
    how = {"resume": resume, "allow_changes": allow_changes, "rehearse": rehearse}
    job_id = submit_job(settings, job, data=data, after=after, **how)
    print(job_id if parsable else f"submitted job {job_id}; its files are in {settings.run.folder}")


@slurm_app.command()
def status(
    run: Run = None,
    config: Config = None,
    job: Job = "train",
    set_: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """How a run's job is: state, nodes, step, reward, time left, servers, last error.

    Example: sgg-rl slurm status runs/demo
    """
    from deploy.slurm.status import job_status, status_lines
    from deploy.slurm.submit import job_settings

    found = job_status(job_settings(settings_of_run(run, config, set_), job))
    if as_json:
        print_json(found)
    else:
        print(printable("\n".join(status_lines(found))))


def _settings(config: list[Path] | None, overrides: list[str] | None, job: Job) -> "Settings":
    from deploy.slurm.submit import job_settings

    return job_settings(run_settings(config, overrides), job)
