"""Which run `docker compose up` is for, from one to the next."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.compose_run import KNOBS, main, resolve_run
from services.errors import SettingsError
from services.settings import Settings, load_settings

Up = Callable[..., Settings]
STEPS = "--set trainer.num_steps="


@pytest.fixture
def up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Up:
    """A start with these knobs alone; returns what every part then reads."""

    def start(**knobs: str) -> Settings:
        for knob in ("RUN_NAME", *KNOBS):  # compose gives an empty one where it is not set
            monkeypatch.setenv(knob, knobs.get(knob, ""))
        resolve_run(tmp_path)
        return load_settings(tmp_path / "run.toml", environment={})

    return start


@pytest.fixture
def mine(tmp_path: Path) -> str:
    """A settings file of one's own, which differs from the demo by its seed."""
    file = tmp_path / "my run.toml"
    file.write_text('[run]\nseed = 7\n[model]\npath = "m"\n[data]\ntrain = "t"\n')
    return f"'{file}'"


def test_the_first_start_is_the_demo_and_the_next_goes_on_with_it(up: Up) -> None:
    first = up()
    assert (first.run.name, first.evaluation.every) == ("demo", 20)
    assert up() == first


def test_a_start_without_knobs_goes_on_with_the_last_run(up: Up, mine: str) -> None:
    started = up(RUN_NAME="second", CONFIG=mine, ARGS=f"{STEPS}3 --set trainer.group_size=4")
    assert (started.run.name, started.run.seed, started.trainer.num_steps) == ("second", 7, 3)
    assert up() == up() == started
    assert up(RUN_NAME="second") == started


def test_a_knob_that_is_given_changes_the_run_and_is_kept(up: Up, mine: str) -> None:
    up(RUN_NAME="second", CONFIG=mine, ARGS=f"{STEPS}3")
    longer = up(ARGS=f"{STEPS}5")
    assert (longer.run.name, longer.run.seed, longer.trainer.num_steps) == ("second", 7, 5)
    assert up() == longer
    assert up(ARGS=" ").trainer.num_steps is None  # a blank takes them away
    assert up().trainer.num_steps is None


def test_a_run_that_is_named_has_its_own_knobs(up: Up, mine: str) -> None:
    first = up(CONFIG=mine)
    other = up(RUN_NAME="other", ARGS=f"{STEPS}2")
    assert (other.run.name, other.run.seed, other.trainer.num_steps) == ("other", 0, 2)
    assert up(RUN_NAME="demo") == first == up()


def test_a_start_that_fails_changes_nothing(
    up: Up, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    started = up(RUN_NAME="second", ARGS=f"{STEPS}3", INPUTS="a folder")
    kept = {file: file.read_text() for file in tmp_path.iterdir()}
    for knobs, said in (
        ({}, "second was last started with INPUTS='a folder'"),
        ({"INPUTS": "a", "ARGS": "--set trainer.steps=3"}, r"\[trainer\] has no 'steps'"),
        ({"INPUTS": "a", "ARGS": "--set 'x"}, "No closing quotation"),
        ({"INPUTS": "a", "CONFIG": "/inputs/none.toml"}, "no settings file at /inputs/none.toml"),
        ({"RUN_NAME": "a/b"}, "run.name"),
    ):
        with pytest.raises(SettingsError, match=said):
            up(**knobs)
    with pytest.raises(SystemExit):
        up(INPUTS="a", ARGS="--allow-changes")
    assert "CONFIG and ARGS: error: unrecognized arguments: --allow-changes" in (
        capsys.readouterr().err
    )
    assert {file: file.read_text() for file in tmp_path.iterdir()} == kept
    assert up(INPUTS="a folder") == started


def test_arguments_go_over_the_environment_of_the_compose_file(
    up: Up, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SGG__WEIGHTS__TRANSPORT", "shm")
    assert up().weights.transport == "shm"
    assert up(ARGS="--set weights.transport=http").weights.transport == "http"


def test_prepare_says_where_to_watch_and_in_one_line_which_run_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "secrets"
    monkeypatch.setattr("deploy.compose_run._FOLDER", folder)
    for knob in KNOBS:
        monkeypatch.delenv(knob, raising=False)
    monkeypatch.setenv("RUN_NAME", "second")
    monkeypatch.setenv("ARGS", f"{STEPS}3")
    main()
    monkeypatch.setenv("RUN_NAME", "")
    monkeypatch.setenv("MONITOR_PORT", "8999")
    main()
    words = f"run second (RUN_NAME=second ARGS='{STEPS}3'); for another one: RUN_NAME=other "
    said = capsys.readouterr().out.splitlines()
    assert said[1::2] == [
        f"sgg-rl: {verb} {words}docker compose up -d" for verb in ("begins", "goes on with")
    ]
    assert [line.partition(",")[0] for line in said[::2]] == [
        f"sgg-rl: watch it at http://127.0.0.1:{port}" for port in (8400, 8999)
    ]
    assert {"data_token", "run.toml"} <= {file.name for file in folder.iterdir()}
    assert json.loads((folder / "runs.json").read_text()) == {"second": {"ARGS": f"{STEPS}3"}}
    monkeypatch.setenv("ARGS", "--set monitor.console=false")
    main()
    assert "watch" not in capsys.readouterr().out
    monkeypatch.setenv("CONFIG", "nowhere.toml")
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == "sgg-rl: no settings file at nowhere.toml\n"
