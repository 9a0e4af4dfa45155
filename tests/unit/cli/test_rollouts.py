import hashlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cli.main import app
from cli.views.rollouts import group_view
from launcher.views.terminal import SafeConsole
from scene_data.dataset import open_dataset
from scene_data.templates import answer_text
from scene_data.toy.scenes import make_toy
from scene_graph.boxes import RELATIVE_1000
from scene_graph.drawing import draw_png
from services.errors import NotFoundError
from services.images import decode_image
from services.run_folder.records import read_rollouts
from services.schemas.common import ImageRef
from services.schemas.groups import GroupReference
from services.schemas.rewards import ReferenceGraph
from services.settings import Settings, dump_settings
from tests.unit.trainer.test_records import TRACE, group, settings
from trainer.records.files import RunRecords
from trainer.records.rollout_files import RolloutFiles
from trainer.types import UnusedGroup


@pytest.fixture
def run(tmp_path: Path) -> Path:
    files = RolloutFiles(tmp_path / "rollouts", rank=0, keep=0)
    files.write(3, [group(0, [1.0, 3.0]), group(1, [2.0, 4.0])], [[-0.1]] * 4)
    files.close()
    return tmp_path


@pytest.fixture
def indexed(run: Path) -> Path:
    """The same with its index, another step after it, and a dead group."""
    files = RolloutFiles(run / "rollouts", rank=0, keep=0)
    files.write(3, [group(0, [1.0, 3.0]), group(1, [2.0, 4.0])], [[-0.1]] * 4)
    files.finish(3, [])
    named = group(2, [0.0, 1.0])
    named.rollout.completions[0].__dict__["text"] = (
        '{"id": "cup.1"} {"subject": "cup.1", "predicate": "on_top of"}'
    )
    files.write(4, [named, group(3, [5.0, 6.0])], [[-0.1]] * 4)
    dead = UnusedGroup(
        state="dead", position=9, group_id="run-dead", index=9, group=None, reason="no image"
    )
    files.finish(4, [dead])
    files.close()
    return run


def test_a_step_is_a_table_for_each_group(run: Path) -> None:
    done = CliRunner().invoke(app, ["rollouts", str(run), "--step", "3"])
    assert done.exit_code == 0, done.output
    assert "run-e0-r0" in done.output
    assert "run-e0-r1" in done.output
    assert "answer 0" not in done.output


def test_json_has_the_records_of_the_chosen_groups(run: Path) -> None:
    words = ["rollouts", str(run), "--step", "3", "--group", "run-e0-r1", "--json"]
    (found,) = json.loads(CliRunner().invoke(app, words).output)
    assert found["rollout"]["group_id"] == "run-e0-r1"
    assert [reward["total"] for reward in found["rewards"]] == [2.0, 4.0]


def test_one_group_is_shown_with_its_texts(run: Path) -> None:
    record = read_rollouts(run, 3)[1]
    record.rollout.completions[1].__dict__["text"] = "first\x1b[2J\nsecond"
    out = io.StringIO()
    SafeConsole(file=out, width=160).print(group_view(record, whole=True))
    text = out.getvalue()
    for expected in ("run-e0-r1", TRACE, "Scene graph:", "answer 0", "4.000", "+1.000", "edge"):
        assert expected in text
    assert "\x1b" not in text
    assert "first\\x1b[2J\nsecond" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--step", "4"], "no groups of step 4 in .*rollouts"),
        (["--step", "3", "--group", "x"], "has no group x; it has run-e0-r0, run-e0-r1"),
        ([], "has no index of its groups"),
        (["--step", "3", "--predicate", "on"], "has no index of its groups"),
    ],
)
def test_what_is_not_there_is_said(run: Path, arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(app, ["rollouts", str(run), *arguments])
    assert isinstance(done.exception, NotFoundError)
    with pytest.raises(NotFoundError, match=message):
        raise done.exception


def test_json_of_a_list_is_a_page_that_leads_to_the_next(indexed: Path) -> None:
    first = listed(indexed, "--limit", "2", "--state", "trained")
    assert [line["group_id"] for line in first["lines"]] == ["run-e0-r3", "run-e0-r2"]
    then = listed(indexed, "--limit", "2", "--state", "trained", f"--after={first['cursor']}")
    assert [line["group_id"] for line in then["lines"]] == ["run-e0-r1", "run-e0-r0"]
    assert then["cursor"] is None


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["--state", "dead"], ["run-dead"]),
        (["--predicate", "On Top-of"], ["run-e0-r2"]),
        (["--object", "cup"], ["run-e0-r2"]),
        (["--text", "ON_TOP"], ["run-e0-r2"]),
        (["--sort", "highest", "--limit", "1"], ["run-e0-r3"]),
        (["--reward-min", "2", "--reward-max", "3"], ["run-e0-r1", "run-e0-r0"]),
        (["--std-min", "9"], []),
        (["--status", "no_answer"], []),
        (["--version", "1"], []),
    ],
)
def test_a_list_has_what_fits(indexed: Path, words: list[str], found: list[str]) -> None:
    assert [line["group_id"] for line in listed(indexed, *words)["lines"]] == found


def test_a_list_fits_80_columns_and_says_what_was_passed_over(indexed: Path) -> None:
    with (indexed / "rollouts/index.rank0.jsonl").open("a") as stream:
        stream.write('{"schema": 2}\n')
    done = CliRunner().invoke(app, ["rollouts", str(indexed)], env={"COLUMNS": "80"})
    assert done.exit_code == 0, done.output
    assert max(map(len, done.output.splitlines())) <= 80
    assert "run-dead" in done.output
    assert "1 line of the index passed over" in done.output


def test_the_newest_step_is_opened_and_what_is_gone_is_said(indexed: Path) -> None:
    shown = CliRunner().invoke(app, ["rollouts", str(indexed), "--last", "--limit", "1"]).output
    assert "run-e0-r2" in shown
    assert "advantage" in shown
    dead = CliRunner().invoke(app, ["rollouts", str(indexed), "--group", "run-dead"])
    assert (dead.exit_code, "no image" in dead.output) == (0, True)
    for file in (indexed / "rollouts").glob("step-000003*"):
        file.unlink()
    words = ["rollouts", str(indexed), "--step", "3"]
    gone = CliRunner().invoke(app, words, env={"COLUMNS": "300"})
    assert gone.exit_code == 0, gone.output
    assert "run-e0-r1" in gone.output
    assert "of step 3 are gone" in gone.output
    found = json.loads(CliRunner().invoke(app, [*words, "--json"]).output)
    assert [each["line"]["group_id"] for each in found] == ["run-e0-r0", "run-e0-r1"]


def test_graphs_are_drawn_over_the_picture_of_their_row(tmp_path: Path) -> None:
    make_toy(tmp_path / "data", num_train=2, num_heldout=1)
    sample = open_dataset(tmp_path / "data/train.parquet")[1]
    tree = settings(tmp_path).model_dump(mode="json", exclude_none=True)
    tree["data"]["train"] = str(tmp_path / "data/train.parquet")
    run = Settings.model_validate(tree)
    run.run.files.path.mkdir()
    run.run.files.config.write_text(dump_settings(run))
    size = (sample.width, sample.height)
    made = group(1, [1.0, 2.0])
    assert made.prompt is not None
    sha256 = hashlib.sha256(sample.image_bytes).hexdigest()
    made.prompt.images.append(ImageRef(sha256=sha256, num_bytes=len(sample.image_bytes)))
    graph = ReferenceGraph.model_validate(sample.graph, from_attributes=True)
    reference = GroupReference(image_size=size, box_space="relative_1000", graph=graph)
    named = made.rollout.model_copy(update={"group_id": "../run e0"})
    made = made.model_copy(update={"reference": reference, "rollout": named})
    text = answer_text(sample.graph, RELATIVE_1000, width=size[0], height=size[1])
    made.rollout.completions[1].__dict__["text"] = text
    records = RunRecords(run, 0)
    records.cut_to(0)
    records.rollouts.write(0, [made], [[-0.1]] * 2)
    records.rollouts.finish(0, [])
    records.close()
    words = ["rollouts", str(run.run.folder), "-o", str(tmp_path / "drawn")]
    assert CliRunner().invoke(app, words).exit_code == 0
    files = {str(f.relative_to(tmp_path / "drawn")): f for f in (tmp_path / "drawn").rglob("*.png")}
    assert set(files) == {"_._run_e0/reference.png", "_._run_e0/1.png"}
    picture = decode_image(sample.image_bytes)
    assert files["_._run_e0/reference.png"].read_bytes() == draw_png(sample.graph, *size, picture)


def listed(run: Path, *words: str) -> Any:
    done = CliRunner().invoke(app, ["rollouts", str(run), "--json", *words])
    assert done.exit_code == 0, done.output
    return json.loads(done.output)
