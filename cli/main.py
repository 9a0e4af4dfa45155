"""The `sgg-rl` command. It parses; then imports what the chosen part needs; then runs it."""

import io
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from cli.commands.look.console import console
from cli.commands.look.rollouts import rollouts
from cli.commands.look.status import dead_app, status
from cli.commands.prepare.data import data_app, model_app
from cli.commands.prepare.doctor import doctor
from cli.commands.prepare.init import init
from cli.commands.prepare.plan import plan
from cli.commands.prepare.rehearse import rehearse
from cli.commands.prepare.reward import reward_app
from cli.commands.prepare.settings import settings_app
from cli.commands.prepare.similarity import similarity_app
from cli.commands.train.launch import demo, run
from cli.commands.train.reproduce import reproduce
from cli.commands.train.serve import serve_app
from cli.commands.train.slurm import slurm_app
from cli.commands.train.train import sft, train
from cli.commands.train.weights import weights_app
from cli.commands.use.evaluate import evaluate
from cli.commands.use.export import export_app
from cli.commands.use.infer import infer
from cli.commands.use.predict import predict
from cli.commands.use.score import score
from services.errors import SggError
from services.host.environment import own_programs_on_path
from services.host.imports import end_at_once
from services.printable import print_safely, quiet_libraries

app = typer.Typer(
    name="sgg-rl",
    help="Reinforcement learning of vision-language models that write scene graphs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

_TRAIN, _USE, _LOOK, _BEFORE = "Train", "Use and evaluate a model", "Look at a run", "Prepare"
for _group, _name, _panel in (
    (serve_app, "serve", _TRAIN),
    (slurm_app, "slurm", _TRAIN),
    (weights_app, "weights", _TRAIN),
    (export_app, "export", _USE),
    (dead_app, "dead", _LOOK),
    (settings_app, "settings", _BEFORE),
    (data_app, "data", _BEFORE),
    (model_app, "model", _BEFORE),
    (similarity_app, "similarity", _BEFORE),
    (reward_app, "reward", _BEFORE),
):
    app.add_typer(_group, name=_name, rich_help_panel=_panel)
_COMMANDS: dict[str, tuple[Callable[..., None], ...]] = {
    _TRAIN: (demo, run, train, sft, reproduce),
    _USE: (predict, infer, evaluate, score),
    _LOOK: (console, status, rollouts),
    _BEFORE: (init, doctor, plan, rehearse),
}
for _panel, _commands in _COMMANDS.items():
    for _command in _commands:
        app.command(rich_help_panel=_panel)(_command)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"sgg-rl {version('sgg-rl')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Exit codes: 0 done, 1 failed, 2 bad usage or settings, 75 stopped early, 130 interrupted.

    3: a trainer whose run another start has taken over.
    75: a trainer that was asked to stop, with its steps in a checkpoint; `--resume` goes on.
    """
    end_at_once()
    own_programs_on_path()
    print_safely()
    quiet_libraries()
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
