"""`sgg-rl reward attack` as a person meets it."""

import json
import sys
from pathlib import Path

import pytest

from cli.commands.prepare import reward
from cli.main import main
from reward_service.attack.search import Search
from scene_data.toy.scenes import make_toy


@pytest.fixture(autouse=True)
def _few_scenes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reward, "_NUM_SCENES", 60)
    monkeypatch.setattr("cli.main.quiet_libraries", lambda: None)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["sgg-rl", "reward", "attack", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def test_a_dataset_and_a_rubric_of_a_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    make_toy(tmp_path, num_train=130, num_heldout=1)
    (tmp_path / "mine.json").write_text('{"name": "mine", "terms": {"edge": 1}}')
    options = ("--rounds", "1", "--data", tmp_path / "train.parquet", "--output", tmp_path / "out")
    assert run(monkeypatch, tmp_path / "mine.json", *options) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("mine: hackability 0.")
    assert "honest answers to 40 unseen images: " in shown.out
    assert shown.err.startswith("round 1 of 1: ")
    value = json.loads((tmp_path / "out" / "attack.json").read_text())
    assert value["rubric"] == {"name": "mine", "terms": {"edge": 1.0}}
    assert value["hackability"] > 0
    image_ids = {hole["example"]["image_id"] for hole in value["holes"]}
    assert image_ids <= {f"train-0-{index}" for index in range(0, 130, 2)}


def test_ctrl_c_writes_what_it_has_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    tried: list[None] = []
    whole = Search.round

    def round_(search: Search) -> None:
        tried.append(None)
        if len(tried) == 2:
            raise KeyboardInterrupt
        whole(search)

    monkeypatch.setattr(Search, "round", round_)
    options = ("--rounds", "900", "--output", tmp_path, "--json")
    assert run(monkeypatch, "r1-hard", *options) == 130
    shown = capsys.readouterr()
    assert shown.err.endswith("interrupted: this is what 1 of 900 rounds found\n")
    value = json.loads(shown.out)
    assert value == json.loads((tmp_path / "attack.json").read_text())
    assert value["rounds"] == 1
    assert value["num_policies"] > 35


def test_a_rubric_that_is_not_there_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "r1-sofd") == 2
    assert "sgg-rl: RUBRIC: no rubric 'r1-sofd'; rubrics are balanced, " in capsys.readouterr().err


def test_a_run_that_names_no_rubric_has_the_default_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "run.toml").write_text('[run]\nname = "mine"\n')
    assert run(monkeypatch, tmp_path / "run.toml", "--rounds", "1") == 0
    assert capsys.readouterr().out.startswith("balanced: hackability ")


def test_a_folder_that_cannot_be_is_said_before_the_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    options = ["r1-hard", "--rounds", "1", "--output", str(tmp_path / "file")]
    monkeypatch.setattr(sys, "argv", ["sgg-rl", "reward", "attack", *options])
    with pytest.raises(SystemExit, match="file: File exists"):
        main()
    assert "round 1" not in capsys.readouterr().err
