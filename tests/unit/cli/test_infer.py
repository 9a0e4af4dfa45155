"""Options of `sgg-rl infer` as settings; and what it shows."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import launcher.inference
from cli.main import app
from evaluation.inference.progress import Progress
from evaluation.reading.lines import GraphLine
from launcher.views.inference import ProgressView, summary
from launcher.views.terminal import SafeConsole
from services.errors import InvalidInputError, SettingsError
from services.settings import Settings
from tests.raw_annotations import put

EMPTY: dict[str, Any] = {"width": 1, "height": 1, "objects": [], "relationships": []}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the command would do."""
    calls: list[dict[str, Any]] = []

    def note(settings: Settings, data: str | list[Path], folder: Path, **more: Any) -> Progress:
        calls.append({"settings": settings, "data": data, "folder": folder, **more})
        done = Progress(total=2)
        for status in ("ok", "invalid_json"):
            done.count(GraphLine(**EMPTY, image_id=status, status=status))
        return done

    monkeypatch.setattr(launcher.inference, "run_inference", note)
    return calls


def run(*arguments: str, stdin: str = "") -> None:
    CliRunner().invoke(app, ["infer", *arguments], input=stdin, catch_exceptions=False)


def test_what_an_r1_sgg_user_writes(asked: list[dict[str, Any]]) -> None:
    run("owner/data", "--model", "m", "-o", "out", "--vocabulary", "vg150", "--thinking")
    (call,) = asked
    settings = call["settings"]
    assert (call["data"], call["folder"], call["own_server"]) == ("owner/data", Path("out"), True)
    assert settings.model.path == "m"
    assert (settings.data.template, settings.data.vocabulary) == ("closed", "vg150")
    assert settings.data.thinking
    assert settings.evaluation.temperature == 0


def test_several_names_are_pictures_as_predict_takes_them(
    asked: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("photos/a.jpg", "photos/b.png", "list.txt", "d.parquet"):
        put(Path(name), b"c.jpg" if name == "list.txt" else b"")
    options = ("--model", "m", "-o", "out")
    run("photos", "list.txt", "-", *options, stdin="x.jpg\nphotos/*.png\n")
    (call,) = asked
    names = ["photos/a.jpg", "photos/b.png", "c.jpg", "x.jpg"]
    assert (call["data"], call["settings"].data.train) == (list(map(Path, names)), "pictures")
    for other in ("d.parquet", "owner/data"):
        with pytest.raises(InvalidInputError, match=f"^{other} is not a picture.* given alone"):
            run("photos", other, *options)
    with pytest.raises(InvalidInputError, match="standard input names no picture"):
        run("-", *options)


def test_json_is_all_of_standard_output(asked: list[dict[str, Any]]) -> None:
    words = ["infer", "data", "--model", "m", "-o", "out", "--json"]
    found = json.loads(CliRunner().invoke(app, words, catch_exceptions=False).stdout)
    assert (found["images"], found["statuses"]) == (2, {"ok": 1, "invalid_json": 1})
    assert found["written"] == "out/predictions.jsonl"
    assert asked[0]["console"].stderr


def test_a_servers_address_holds_no_password(tmp_path: Path) -> None:
    given = ["data", "-o", str(tmp_path / "out"), "--model", "m"]
    with pytest.raises(SettingsError, match="without a user or password") as caught:
        run(*given, "--server", "http://me:correct-horse@127.0.0.1:1")
    assert "correct-horse" not in caught.value.message


def test_options_win_over_the_file(asked: list[dict[str, Any]], tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text(
        '[model]\npath = "m"\n[data]\ntrain = "t"\ntemplate = "closed"\nvocabulary = "psg"\n'
        "[evaluation]\ntemperature = 0.5\nmax_tokens = 9\n"
    )
    given = ["data", "-o", "out", "-c", str(config)]
    run(*given)
    run(*given, "--template", "open", "--temperature", "0", "--max-tokens", "7", "--seed", "3")
    run(*given, "--server", "http://a:1", "--server", "http://b:1", "--model", "other")
    plain, changed, served = asked
    assert not plain["own_server"]
    assert plain["settings"].data.vocabulary == "psg"
    assert plain["settings"].evaluation.temperature == 0.5
    assert (changed["settings"].data.template, changed["settings"].data.vocabulary) == (
        "open",
        None,
    )
    assert changed["settings"].evaluation.temperature == 0
    assert changed["settings"].evaluation.max_tokens == 7
    assert changed["settings"].run.seed == 3
    assert served["servers"] == ["http://a:1", "http://b:1"]
    assert not served["own_server"]
    assert served["settings"].model.path == "other"


def test_a_model_has_to_be_named() -> None:
    with pytest.raises(SettingsError, match="--model, or --config"):
        run("data", "-o", "out")


def line(status: str = "ok") -> GraphLine:
    return GraphLine(
        image_id="1",
        width=1,
        height=1,
        objects=[],
        relationships=[],
        status=status,
        policy_versions=(3, 4),
        unconstrained_status="invalid_json" if status == "ok" else None,
    )


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_and_summary_say_what_came(terminal: bool) -> None:
    out = io.StringIO()
    console = SafeConsole(file=out, force_terminal=terminal, width=100, color_system=None)
    progress = Progress(total=4)
    progress.count(line())
    progress.skipped, progress.started = 1, 0.0
    with ProgressView(progress, console) as view:
        view.update()
        progress.count(line("no_answer"))
        progress.tokens = 12
    console.print(summary(progress, Path("out")))
    text = out.getvalue()
    assert "1/4 images" in text
    assert "2/4 images" in text
    assert "failed 1 (no_answer 1)" in text
    assert "2, 1 of them earlier" in text
    assert "3 to 4: they changed meanwhile" in text
    assert "out/predictions.jsonl" in text
    assert "asked again under the schema" in text
