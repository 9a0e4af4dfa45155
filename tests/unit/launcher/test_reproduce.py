import shlex
import subprocess
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup

from cli.main import app
from launcher.reproduce import RECIPES, STAGES, TINY_RECIPES, commands, find_rows, run_tiny
from services.errors import ConflictError, SettingsError


def sgg_rl_commands(script: str) -> list[list[str]]:
    """The words of each `sgg-rl` in it, without what the shell does around it."""
    found = []
    for line in script.splitlines():
        _, command, rest = line.partition("sgg-rl ")
        if command and not line.startswith("#"):
            found.append(shlex.split(rest.partition(" &")[0].replace("$((8200 + gpu))", "8201")))
    return found


def parse(words: list[str]) -> None:
    """Let the command's own parser read its words; a wrong option is an error."""
    command = typer.main.get_command(app)
    while isinstance(command, TyperGroup):
        name, *words = words
        command = command.commands[name]
    command.make_context(command.name, words)


@pytest.mark.parametrize("hardware", [None, "80gbx1", "gh200x16"])
def test_every_printed_command_is_one_that_the_cli_takes(hardware: str | None) -> None:
    rows = find_rows(RECIPES, hardware=hardware)
    script = "\n".join(commands(rows))
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    found = sgg_rl_commands(script)
    for words in found:
        parse(words)
    kinds = [words[0] for words in found]
    assert kinds.count("infer") == kinds.count("evaluate") == len(rows) == 32
    assert (kinds.count("sft"), kinds.count("run")) == (8, 16)


def test_a_row_brings_the_fine_tuning_that_it_goes_on_from() -> None:
    rows = find_rows(RECIPES, "psg-closed-7b-grpo", runs=Path("elsewhere"))
    found = sgg_rl_commands("\n".join(commands(rows)))
    assert [words[0] for words in found] == ["sft", "run", "infer", "evaluate"]
    tuned = "elsewhere/psg-closed-7b-sft/model"
    assert f"model.path={tuned}" in found[-3]
    assert "run.root=elsewhere" in found[0]
    model = found[-2][found[-2].index("--model") + 1]
    assert model == "elsewhere/psg-closed-7b-grpo/checkpoint"


def test_one_stage_alone() -> None:
    rows = find_rows(RECIPES, "vg150-open-2b-*")
    for stage in STAGES:
        kinds = {words[0] for words in sgg_rl_commands("\n".join(commands(rows, [stage])))}
        assert kinds == ({"run"} if stage == "grpo" else {stage})


def test_tiny_rows_are_the_same_chain() -> None:
    names = [row.name for row in find_rows(TINY_RECIPES)]
    assert names == ["tiny-instruct", "tiny-sft", "tiny-grpo"]


@pytest.mark.parametrize(("pattern", "hardware"), [("coco-*", None), ("*", "tpu")])
def test_what_there_is_not_is_refused_with_what_there_is(
    pattern: str, hardware: str | None
) -> None:
    with pytest.raises(SettingsError, match="there are"):
        find_rows(RECIPES, pattern, hardware=hardware)


def test_earlier_tiny_runs_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "tiny-grpo").mkdir()
    with pytest.raises(ConflictError, match="remove it"):
        run_tiny(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny-grpo"]
