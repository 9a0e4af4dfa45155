"""Which run `docker compose up` is for, from one to the next."""

from collections.abc import Callable
from pathlib import Path

import pytest

from services.started_run import KNOBS, check_started_run

Up = Callable[..., None]


@pytest.fixture
def up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Up:
    def start(**knobs: str) -> None:
        for knob in KNOBS:  # compose gives an empty one where it is not set
            monkeypatch.setenv(knob, knobs.get(knob, ""))
        check_started_run(tmp_path / "started.json")

    return start


def test_the_default_run_goes_on_and_takes_other_arguments(up: Up) -> None:
    up()
    up(ARGS="--set trainer.num_steps=3")
    up(ARGS="--set trainer.num_steps=4")


def test_another_run_is_refused_unless_it_is_named(up: Up) -> None:
    up(RUN_NAME="second", ARGS="--set a.b=1 --set c.d=2")
    words = "RUN_NAME=second ARGS='--set a.b=1 --set c.d=2'"
    for knobs in ({}, {"ARGS": "--set a.b=1"}):
        with pytest.raises(SystemExit, match=words):
            up(**knobs)
    up(RUN_NAME="second")
    up(RUN_NAME="demo")
    with pytest.raises(SystemExit, match="RUN_NAME=demo"):
        up()


def test_the_default_run_with_a_file_of_ones_own_does_not_lose_it(up: Up) -> None:
    up(CONFIG="/inputs/mine.toml")
    with pytest.raises(SystemExit, match=r"CONFIG=/inputs/mine\.toml"):
        up()
