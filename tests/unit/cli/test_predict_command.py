"""Options of `sgg-rl predict` as settings and pictures; what it says and how it ends."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import launcher.inference
from cli.main import app
from evaluation.inference.answers import not_asked_line
from evaluation.reading.lines import GraphLine
from launcher.views.inference import say_failed
from services.errors import InvalidInputError, SettingsError, UnavailableError
from services.host.ports import free_port
from services.run_folder import trained_model
from services.settings import Settings
from tests.raw_annotations import picture, put

ASKED_AGAIN = "The same command then asks about these alone."


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, Any]]:
    """What the command would do, in a folder with two pictures; `bad.jpg` cannot be asked about."""
    calls: list[dict[str, Any]] = []
    monkeypatch.chdir(tmp_path)
    put(Path("photos/a.jpg"), b"")
    put(Path("photos/b.jpg"), b"")

    def note(settings: Settings, pictures: list[Path], folder: Path, **more: Any) -> bool:
        names = list(map(str, pictures))
        calls.append({"settings": settings, "pictures": names, "folder": folder, **more})
        return "bad.jpg" not in names

    monkeypatch.setattr(launcher.inference, "run_prediction", note)
    return calls


def run(*arguments: str, stdin: str = "") -> Result:
    return CliRunner().invoke(app, ["predict", *arguments], input=stdin, catch_exceptions=False)


def trained(folder: Path, name: str) -> None:
    put(folder / "config.toml", b'[model]\npath="start"\n[data]\ntrain="t"\ntemplate="toy"\n')
    put(folder / name / "config.json", b"{}")


def test_options_and_pictures(asked: list[dict[str, Any]]) -> None:
    sampling = ("--temperature", "0.7", "--best-of", "4", "--seed", "3", "--draw", "svg")
    assert run("photos", "more.jpg", "--model", "m", *sampling).exit_code == 0
    (call,) = asked
    assert call["pictures"] == ["photos/a.jpg", "photos/b.jpg", "more.jpg"]
    assert (call["folder"], call["draw"], call["own_server"]) == (Path("predictions"), "svg", True)
    settings = call["settings"]
    assert (settings.model.path, settings.evaluation.best_of, settings.run.seed) == ("m", 4, 3)
    assert settings.evaluation.temperature == 0.7


def test_names_come_from_standard_input_too(asked: list[dict[str, Any]]) -> None:
    run("x.jpg", "-", "--model", "m", stdin="photos\n\ny.jpg\n")
    assert asked[0]["pictures"] == ["x.jpg", "photos/a.jpg", "photos/b.jpg", "y.jpg"]


def test_a_picture_that_failed_makes_the_command_fail(asked: list[dict[str, Any]]) -> None:
    assert run("photos", "bad.jpg", "--model", "m").exit_code == 1


@pytest.mark.parametrize("name", ["checkpoint", "model"])
def test_a_runs_model_is_asked_as_the_run_asked_it(asked: list[dict[str, Any]], name: str) -> None:
    trained(Path("runs/demo"), name)
    for model in ("runs/demo", f"runs/demo/{name}"):
        result = run("photos", "--model", model)
        assert "asked as runs/demo/config.toml says" in result.stderr
    run("photos", "--model", "runs/demo", "--template", "open")
    models = [call["settings"].model.path for call in asked]
    assert models == [f"runs/demo/{name}"] * 3
    assert [call["settings"].data.template for call in asked] == ["toy", "toy", "open"]


def test_a_model_of_no_run_is_taken_as_it_is(tmp_path: Path) -> None:
    put(tmp_path / "mine/config.json", b"{}")
    put(tmp_path / "config.toml", b"")
    assert trained_model(tmp_path / "mine") == (tmp_path / "mine", None)


def test_what_is_wrong_is_said_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    put(Path("a.jpg"), picture())
    put(Path("bad.jpg"), b"no picture")
    Path("empty").mkdir()
    nobody = f"http://127.0.0.1:{free_port()}"
    fake = ("--set", "rollout.engine=fake", "--set", "model.box_space=relative_1")
    for error, said, arguments in (
        (SettingsError, "say which model", ["a.jpg"]),
        (InvalidInputError, "no picture in the folder empty", ["empty", "--model", "m"]),
        (UnavailableError, f"nobody is at {nobody}", ["a.jpg", "--server", nobody]),
        (UnavailableError, f"nobody is at {nobody}", ["a.jpg", "--server", nobody, "--model", "m"]),
        (SettingsError, "needs a temperature", ["a.jpg", "--model", "m", "--best-of", "2"]),
        (SettingsError, "there is no m", ["a.jpg", "--model", "m"]),
        (SettingsError, "cannot be written", ["a.jpg", "--model", "m", "-o", "/proc/x"]),
        (InvalidInputError, "bad.jpg: not an image of", ["bad.jpg", "--model", "m", *fake]),
        (InvalidInputError, "bad.jpg: not an image of", ["bad.jpg", "--server", nobody]),
        (InvalidInputError, "gone.jpg: .*No such file", ["gone.jpg", "--server", nobody]),
        (InvalidInputError, "bad.jpg: not", ["bad.jpg", "--server", nobody, "--model", "m"]),
    ):
        with pytest.raises(error, match=said):
            run(*arguments)
    assert not list(Path.cwd().rglob("predictions.jsonl"))


def test_failed_pictures_are_listed_each_with_its_remedy(tmp_path: Path) -> None:
    def said(*lines: GraphLine) -> list[str]:
        found: list[str] = []
        files = {str(line.image_id): tmp_path / str(line.image_id) for line in lines}
        say_failed(found.append, lines, files)
        return found

    assert said() == []
    there = [
        not_asked_line("a.jpg", "refused", "the prompt is too long", (9, 9)),
        *(not_asked_line(f"{n}.jpg", "unreadable", f"{n}.jpg: damaged") for n in range(30)),
    ]
    for line in there:
        put(tmp_path / str(line.image_id), b"")
    found = said(*there)
    assert found[:3] == [
        "31 pictures could not be asked about:",
        "  a.jpg: the prompt is too long",
        "  0.jpg: damaged",
    ]
    assert "11 more" in found[-3]
    save = "save them again as JPEG or PNG of at most 64,000,000 pixels."
    assert found[-2:] == [f"S{save[1:]}", ASKED_AGAIN]
    gone = not_asked_line("gone.jpg", "unreadable", "gone.jpg: No such file")
    mend = "Files that cannot be opened: mend their names, links or permissions."
    assert said(gone)[2:] == [mend, ASKED_AGAIN]
    assert said(gone, there[0])[3:] == [mend, f"The others: {save}", ASKED_AGAIN]
