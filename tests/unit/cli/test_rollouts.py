import io
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.commands.look.rollouts import group_view
from cli.main import app
from launcher.views.terminal import SafeConsole
from services.errors import NotFoundError
from services.run_folder.records import read_rollouts
from tests.unit.trainer.test_records import TRACE, group
from trainer.records.rollout_files import RolloutFiles


@pytest.fixture
def run(tmp_path: Path) -> Path:
    files = RolloutFiles(tmp_path / "rollouts", rank=0, keep=0)
    files.write(3, [group(0, [1.0, 3.0]), group(1, [2.0, 4.0])], [[-0.1]] * 4)
    return tmp_path


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
    ],
)
def test_what_is_not_there_is_said(run: Path, arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(app, ["rollouts", str(run), *arguments])
    assert isinstance(done.exception, NotFoundError)
    with pytest.raises(NotFoundError, match=message):
        raise done.exception
