import shlex
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest
import tomli_w
import typer
from pydantic import TypeAdapter
from typer.core import TyperGroup

from cli.main import app
from deploy.slurm.layout import Job
from deploy.slurm.render import render
from deploy.slurm.submit import job_settings
from evaluation.published import published_tables
from launcher.reproduce import (
    RECIPES,
    STAGES,
    TINY_RECIPES,
    commands,
    find_rows,
    fitting_place,
    run_tiny,
)
from services.errors import ConflictError, SettingsError
from services.settings import load_settings

SITES = {"a100x16": "a100", "gh200x16": "cscs-alps", "24gbx32": "24gb"}
SITE_VALUES = {
    "a100": ("partition", "venv"),
    "cscs-alps": ("account", "environment"),
    "24gb": ("partition", "venv"),
}


def sgg_rl_commands(script: str) -> list[list[str]]:
    """The words of each `sgg-rl` in it, without what the shell does around it."""
    found = []
    for line in script.splitlines():
        _, command, rest = line.partition("sgg-rl ")
        if command and not line.startswith("#"):
            found.append(shlex.split(rest.removesuffix(")")))
    return found


def run_jobs(script: str, folder: Path) -> list[list[str]]:
    """Run it with an `sgg-rl` that prints 1, 2, … as ids of jobs; the words that it was given."""
    program, calls = folder / "sgg-rl", folder / "calls"
    program.write_text(f'#!/bin/bash\necho "${{@@Q}}" >>{calls}\nwc -l <{calls} | tr -d " "\n')
    program.chmod(0o755)
    path = {"PATH": f"{folder}:/usr/bin:/bin"}
    command = ["bash", "-c", script, "script", "cluster.toml"]
    subprocess.run(command, env=path, check=True, capture_output=True)
    return [shlex.split(line) for line in calls.read_text().splitlines()]


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
    assert kinds.count("infer") == kinds.count("evaluate") == len(rows) == 34
    assert (kinds.count("sft"), kinds.count("run")) == (8, 18)


def test_a_row_brings_the_fine_tuning_that_it_goes_on_from() -> None:
    rows = find_rows(RECIPES, "psg-closed-7b-grpo", runs=Path("elsewhere"))
    found = sgg_rl_commands("\n".join(commands(rows)))
    assert [words[0] for words in found] == ["sft", "run", "infer", "evaluate"]
    tuned = "elsewhere/psg-closed-7b-sft/model"
    assert f"model.path={tuned}" in found[-3]
    assert "run.root=elsewhere" in found[0]
    model = found[-2][found[-2].index("--model") + 1]
    assert model == "elsewhere/psg-closed-7b-grpo/checkpoint"


@pytest.mark.parametrize(("hardware", "site"), SITES.items())
def test_every_row_is_printed_as_jobs_that_wait_for_one_another(
    hardware: str, site: str, tmp_path: Path
) -> None:
    rows = find_rows(RECIPES, hardware=hardware)
    assert fitting_place(rows) == "slurm"
    cluster = {"site": site, "site_values": dict.fromkeys(SITE_VALUES[site], "x")}
    file = tmp_path / "cluster.toml"
    file.write_text(tomli_w.dumps({"deploy": cluster}))
    calls = run_jobs("\n".join(commands(rows, STAGES, "slurm")), tmp_path)
    trained: dict[str, str] = {}
    for number, words in enumerate(calls, start=1):
        parse(words)
        options = list(pairwise(words))
        paths = [Path(value) for option, value in options if option == "--config"]
        changes = [value for option, value in options if option == "--set"]
        assert paths.pop() == Path("cluster.toml")
        (name,) = (value for option, value in options if option == "--job")
        job: Job = TypeAdapter(Job).validate_python(name)
        settings = load_settings([*paths, file], changes, environment={})
        assert "#SBATCH" in render(job_settings(settings, job), job)
        start = Path(settings.model.path)
        wanted = [trained[start.parts[1]]] if start.parts[0] == "runs" else []
        assert [value for option, value in options if option == "--after"] == wanted
        if job != "infer":
            trained[settings.run.name] = str(number)
    assert (len(calls), len(trained)) == (34 + 26, 26)


def test_a_row_is_trained_with_the_reward_of_the_published_row() -> None:
    rewards = {}
    for table in (table for data in ("vg150", "psg") for table in published_tables(data)):
        for line in table.rows:
            if line.recipe:
                (row,) = find_rows(RECIPES, line.recipe)
                rewards[line.recipe] = row.settings.reward.rubric
                assert line.rubric in {"", row.settings.reward.rubric}
                assert line.parameters.lower() in line.recipe
                assert f"{table.dataset}-{table.prompt}-" in line.recipe
    assert rewards["vg150-closed-7b-grpo"] == "r1-hard"
    assert rewards["vg150-closed-7b-soft"] == "r1-soft"
    assert len(rewards) == 26


def test_the_script_says_what_was_published() -> None:
    script = "\n".join(commands(find_rows(RECIPES, "vg150-closed-7b-grpo"), ["evaluate"]))
    assert (
        "# vg150-closed-7b-grpo: arXiv 2504.13617 table 1, VG150 val, sgb: failures 0.08, "
        "AP50 19.47, recall 23.75, mean recall 11.43\n"
    ) in script


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
