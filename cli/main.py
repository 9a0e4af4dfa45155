"""The `sgg-rl` command. It parses; then imports what the chosen part needs; then runs it."""

import io
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from cli.commands.data import data_app
from cli.commands.evaluate import evaluate
from cli.commands.infer import infer
from cli.commands.plan import plan
from cli.commands.reproduce import reproduce
from cli.commands.rollouts import rollouts
from cli.commands.score import score
from cli.commands.similarity import similarity_app
from cli.commands.slurm import slurm_app
from cli.commands.weights import weights_app
from services.errors import SggError
from services.host.environment import own_programs_on_path
from services.printable import print_safely

app = typer.Typer(
    name="sgg-rl",
    help="Reinforcement learning of vision-language models that write scene graphs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
serve_app = typer.Typer(help="Run one service in the foreground.", no_args_is_help=True)
model_app = typer.Typer(help="Make models.", no_args_is_help=True)
dead_app = typer.Typer(help="Groups that failed too often.", no_args_is_help=True)
app.add_typer(serve_app, name="serve")
app.add_typer(data_app, name="data")
app.add_typer(model_app, name="model")
app.add_typer(dead_app, name="dead")
app.add_typer(similarity_app, name="similarity")
app.add_typer(weights_app, name="weights")
app.add_typer(slurm_app, name="slurm")

Config = Annotated[
    list[Path] | None,
    typer.Option("--config", "-c", help="The run's TOML file; given twice, later over earlier."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="section.field=value, over the file and environment."),
]
AllowChanges = Annotated[
    bool, typer.Option(help="With --resume: also with another dataset, instruction or reward.")
]
Host = Annotated[str | None, typer.Option(help="Bind here instead of the host in the settings.")]
Port = Annotated[int | None, typer.Option(min=1, max=65535, help="Instead of the settings' port.")]
Family = Annotated[
    Literal["qwen2_vl", "qwen2_5_vl", "qwen3_vl"], typer.Option(help="The architecture.")
]


@serve_app.command("redis")
def serve_redis(
    config: Config = None, set_: Overrides = None, host: Host = None, port: Port = None
) -> None:
    """Redis or Valkey, with its data in the run's folder."""
    from cli.commands import parts as run

    run.serve_redis(run.settings(config, set_, redis=(host, port)))


@serve_app.command("reward")
def serve_reward(
    config: Config = None,
    set_: Overrides = None,
    host: Host = None,
    port: Port = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; each scores on one core.")
    ] = None,
) -> None:
    """The reward service."""
    from cli.commands import parts as run

    overrides = [*(set_ or []), *([f"reward.workers={workers}"] if workers else [])]
    run.serve_reward(run.settings(config, overrides, reward=(host, port)))


@serve_app.command("rollout")
def serve_rollout(
    config: Config = None, set_: Overrides = None, host: Host = None, port: Port = None
) -> None:
    """A rollout server."""
    from cli.commands import parts as run

    run.serve_rollout(run.settings(config, set_, rollout=(host, port)))


@serve_app.command("monitor")
def serve_monitor(
    config: Config = None, set_: Overrides = None, host: Host = None, port: Port = None
) -> None:
    """Metrics of the whole run, and its addresses, for Prometheus."""
    from cli.commands import parts as run

    run.serve_monitor(run.settings(config, set_, monitor=(host, port)))


@app.command()
def train(
    config: Config = None,
    set_: Overrides = None,
    resume: Annotated[bool, typer.Option(help="Continue from the last checkpoint.")] = False,
    allow_changes: AllowChanges = False,
    dry_run: Annotated[bool, typer.Option(help="Check and print the settings only.")] = False,
) -> None:
    """GRPO on running services."""
    from cli.commands import parts as run

    found = run.settings(config, set_)
    run.train(found, resume=resume, allow_changes=allow_changes, dry_run=dry_run)


@app.command()
def sft(
    config: Config = None,
    set_: Overrides = None,
    resume: Annotated[bool, typer.Option(help="Continue from the last checkpoint.")] = False,
    allow_changes: AllowChanges = False,
) -> None:
    """Supervised fine-tuning on reference graphs."""
    from cli.commands import parts as run

    found = run.settings(config or [Path("configs/toy-sft.toml")], set_)
    run.sft(found, resume=resume, allow_changes=allow_changes)


@app.command("run")
def run_command(
    config: Config = None,
    set_: Overrides = None,
    resume: Annotated[bool, typer.Option(help="Go on with the run of this name.")] = False,
    allow_changes: AllowChanges = False,
) -> None:
    """A whole run on this machine: Redis, reward service, rollout servers, trainer."""
    from cli.commands import parts as run

    found = run.settings(config, set_)
    run.run(found, resume=resume, allow_changes=allow_changes, evaluate=False)


@app.command()
def demo(
    config: Config = None,
    set_: Overrides = None,
    data: Annotated[
        str | None, typer.Option(help="Train and evaluate on this dataset instead.")
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on with the run of this name.")] = False,
    allow_changes: AllowChanges = False,
) -> None:
    """As `run`, with held-out evaluations before and after, and a report."""
    from cli.commands import parts as run

    found = run.demo_settings(config, set_, data)
    run.run(found, resume=resume, allow_changes=allow_changes, evaluate=True)


@app.command()
def status(
    config: Config = None,
    set_: Overrides = None,
    watch: Annotated[bool, typer.Option(help="Refresh until Ctrl-C.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> None:
    """The run's servers, policy and queues."""
    from cli.commands import parts as run
    from cli.commands import status

    if watch and as_json:
        raise typer.BadParameter("--watch is for people, --json for scripts: give one of them")
    settings = run.settings(config, set_)
    if watch:
        status.watch_status(settings)
    else:
        status.show_status(settings, as_json=as_json)


@app.command()
def doctor(
    config: Config = None,
    set_: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> None:
    """Check what this machine has, with --config what that run needs; say what is missing."""
    from cli.commands import parts as run
    from cli.commands.doctor import examine

    examine(run.settings(config, set_) if config or set_ else None, as_json=as_json)


app.command()(infer)
app.command()(score)
app.command()(evaluate)
app.command()(rollouts)
app.command()(plan)
app.command()(reproduce)


@model_app.command("make-tiny")
def make_tiny(folder: Path, seed: int = 0, family: Family = "qwen2_5_vl") -> None:
    """Write a tiny Qwen-VL with random weights into FOLDER."""
    from cli.commands import parts as run

    run.make_tiny(folder, seed, family)


@dead_app.command("list")
def dead_list(config: Config = None, set_: Overrides = None) -> None:
    """Each dead group with its errors."""
    from cli.commands import parts as run

    run.dead_list(run.settings(config, set_))


@dead_app.command("drop")
def dead_drop(entry_id: str, config: Config = None, set_: Overrides = None) -> None:
    """Forget a dead group."""
    from cli.commands import parts as run

    run.dead_drop(run.settings(config, set_), entry_id)


def main() -> None:
    """Exit codes: 0 done, 1 failed, 2 bad usage or settings, 75 stopped early, 130 interrupted.

    3: a trainer whose run another start has taken over.
    75: a trainer that was asked to stop, with its steps in a checkpoint; `--resume` goes on.
    """
    own_programs_on_path()
    print_safely()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # of a terminal that may know ASCII only
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except SggError as error:
        print(f"sgg-rl: {error.message}", file=sys.stderr)
        sys.exit(error.exit_code)
    except (FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
        if error.filename is None:
            raise
        sys.exit(f"sgg-rl: {error.filename}: {error.strerror}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
