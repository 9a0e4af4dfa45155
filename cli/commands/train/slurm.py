"""`sgg-rl slurm`: a run as a Slurm job."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cli.options import AsJson, Config, Overrides
from cli.settings import run_settings
from cli.views.as_json import print_json
from services.errors import SettingsError
from services.printable import printable
from services.run_folder import RunFolder

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
    after: Annotated[str | None, typer.Option(help="A job that must end well before it.")] = None,
    parsable: Annotated[bool, typer.Option("--parsable", help="Print the job's id alone.")] = False,
) -> None:
    """Put the job into the queue, with its settings, secrets and script in the run's folder.

    Example: sgg-rl slurm submit --config run.toml --resume
    """
    from deploy.slurm.submit import submit as submit_job

    settings = _settings(config, set_, job)
    job_id = submit_job(settings, job, data=data, resume=resume, after=after)
    print(job_id if parsable else f"submitted job {job_id}; its files are in {settings.run.folder}")


@slurm_app.command()
def status(
    run: Annotated[
        Path | None, typer.Argument(help="The run's folder, such as runs/demo; or give --config.")
    ] = None,
    config: Annotated[
        list[Path] | None, typer.Option("--config", "-c", help="The run's TOML file.")
    ] = None,
    job: Job = "train",
    set_: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """How a run's job is: state, nodes, step, reward, time left, servers, last error.

    Example: sgg-rl slurm status runs/demo
    """
    from deploy.slurm.status import job_status, status_lines
    from deploy.slurm.submit import job_settings
    from services.settings import load_settings

    if run is None:
        settings = _settings(config, set_, job)
    elif config:
        raise SettingsError("name the run's folder or --config, not both")
    else:  # wherever this is called: run.root may be relative to where the job was submitted
        folder = run.resolve()
        settings = load_settings(RunFolder(folder).config, set_ or [])
        settings = settings.changed(run={"root": folder.parent, "name": folder.name})
        settings = job_settings(settings, job)
    found = job_status(settings)
    if as_json:
        print_json(found)
    else:
        print(printable("\n".join(status_lines(found))))


def _settings(config: list[Path] | None, overrides: list[str] | None, job: Job) -> "Settings":
    from deploy.slurm.submit import job_settings

    return job_settings(run_settings(config, overrides), job)
