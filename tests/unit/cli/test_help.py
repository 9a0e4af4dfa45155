"""Every command's help as a person meets it: whole at 80 columns, with an example that works."""

import shlex
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from cli.main import app

WIDTH = 80
TOP = typer.main.get_command(app)


def command_words(command: typer.core.TyperGroup, *above: str) -> Iterator[tuple[str, ...]]:
    for name, inner in command.commands.items():
        yield (*above, name)
        if isinstance(inner, typer.core.TyperGroup):
            yield from command_words(inner, *above, name)


assert isinstance(TOP, typer.core.TyperGroup)
EVERY = list(command_words(TOP))
CONTEXT = typer.Context(TOP, info_name="sgg-rl")
COMMANDS = [words for words in EVERY if not any(other[:-1] == words for other in EVERY)]


def help_of(*words: str) -> list[str]:
    # Of a terminal and of a pipe alike: rich takes the width from the environment.
    shown = CliRunner(env={"COLUMNS": str(WIDTH)}).invoke(app, [*words, "--help"])
    assert shown.exit_code == 0, shown.output
    return shown.output.splitlines()


def examples(*words: str) -> list[str]:
    lines = " ".join(line.strip() for line in help_of(*words))
    _, *found = lines.split("Example: sgg-rl ")
    return [text.partition(" ╭")[0].strip() for text in found]


@pytest.mark.parametrize("words", [(), *EVERY], ids=" ".join)
def test_help_is_whole_at_80_columns(words: tuple[str, ...]) -> None:
    lines = help_of(*words)
    assert max(map(len, lines)) <= WIDTH
    assert not [line for line in lines if "…" in line]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_an_example_is_a_command_line_that_is_read(words: tuple[str, ...]) -> None:
    found = examples(*words)
    assert len(found) == 1
    given = shlex.split(found[0])
    assert tuple(given[: len(words)]) == words
    command: Any = TOP
    for word in words:
        command = command.get_command(CONTEXT, word)
    command.make_context(words[-1], given[len(words) :])


def test_version_is_that_of_the_package() -> None:
    assert CliRunner().invoke(app, ["--version"]).output == f"sgg-rl {version('sgg-rl')}\n"


@pytest.mark.parametrize(
    ("given", "meant"), [("statsu", "status"), ("rollout", "rollouts"), ("evalaute", "evaluate")]
)
def test_a_misspelt_command_is_guessed(given: str, meant: str) -> None:
    done = CliRunner(env={"COLUMNS": str(WIDTH)}).invoke(app, [given])
    assert done.exit_code == 2
    assert f"Did you mean '{meant}'" in done.output
