"""`sgg-rl init`: its files are runs of this version, and are never written over another."""

import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app
from services.settings import Settings, load_settings

SHIPPED = {
    "demo": ["demo"],
    "own-data": ["hardware/80gbx1"],
    "r1-sgg": ["r1-sgg/vg150-closed-2b-zero", "hardware/80gbx8"],
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def made(kind: str) -> Settings:
    done = CliRunner().invoke(app, ["init", kind])
    assert done.exit_code == 0, done.output
    assert max(map(len, done.output.splitlines())) <= 80
    return load_settings(Path("run.toml"), [], {})


@pytest.mark.parametrize("kind", ["demo", "r1-sgg"])
def test_what_it_says_is_what_the_shipped_run_is(kind: str, folder: Path) -> None:
    run = made(kind)
    shipped = load_settings([*map(Path, SHIPPED[kind])], [], {})
    own_data = {"data": run.data.model_dump()} if kind == "demo" else {}
    assert run == shipped.changed(**own_data)
    assert tomllib.loads((folder / "run.toml").read_text())["extends"] == SHIPPED[kind]


def test_a_run_on_own_data_is_that_of_one_gpu(folder: Path) -> None:
    run = made("own-data")
    assert (run.cluster.num_rollout_servers, run.data.train) == (1, "data/train.parquet")
    closed = (folder / "run.toml").read_text().replace('"open"', '"closed"').replace("#voc", "voc")
    (folder / "run.toml").write_text(closed)
    assert load_settings(Path("run.toml"), [], {}).data.vocabulary == "names.toml"


def test_every_setting_of_its_files_says_what_it_is_for(folder: Path) -> None:
    for kind in SHIPPED:
        made(kind)
        file = folder / "run.toml"
        lines = file.read_text().splitlines()
        assert max(map(len, lines)) <= 100
        assert sum(" # " in line for line in lines) >= 8
        file.unlink()


@pytest.mark.parametrize(
    ("place", "kind", "message"),
    [
        ("taken", "demo", "run.toml is here already, and stays as it is"),
        ("/proc", "demo", "/proc cannot be written"),
        (".", "coco", "choose demo, own-data, r1-sgg"),
    ],
)
def test_bad_input_is_one_line_with_the_remedy(
    place: str, kind: str, message: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "taken").mkdir()
    (folder / "taken" / "run.toml").write_text("mine")
    monkeypatch.chdir(place)
    done = CliRunner().invoke(app, ["init", kind])
    assert done.exception is not None
    assert message in str(done.exception)
    assert "\n" not in str(done.exception)
    assert (folder / "taken" / "run.toml").read_text() == "mine"
