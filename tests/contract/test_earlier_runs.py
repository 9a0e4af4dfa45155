"""A run's folder as the release at 88e81e3 left it, which said no schema version anywhere.

Made by that release's `sgg-rl demo` with the fake engine, and shortened.
"""

import json
from pathlib import Path

import pytest

from services.errors import InvalidInputError, SettingsError
from services.run_folder.records import parse_record, read_rollouts
from services.schemas.versions import parse
from services.settings import load_settings
from trainer.checkpoints.checkpoint import TrainerState
from trainer.checkpoints.manifest import MANIFEST_FILE, Manifest, damage

RUN = Path(__file__).parent / "golden/earlier/88e81e3/run"
CHECKPOINT = RUN / "checkpoints/step-000004"


def test_its_settings_need_one_line_less(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"deploy\.trainer_nodes: .* remove the line\. Nodes"):
        load_settings(RUN / "config.toml")
    lines = (RUN / "config.toml").read_text().splitlines(keepends=True)
    config = tmp_path / "config.toml"
    config.write_text("".join(line for line in lines if not line.startswith("trainer_nodes")))
    assert load_settings(config).trainer.num_steps == 4


def test_its_checkpoint_is_read() -> None:
    state = parse(TrainerState, (CHECKPOINT / "trainer.json").read_bytes())
    assert (state.step, state.cursor.low, state.num_ranks) == (4, 8, 1)
    manifest = parse(Manifest, (CHECKPOINT / MANIFEST_FILE).read_bytes())
    assert "trainer.json" in manifest.files


def test_its_groups_are_read() -> None:
    [record] = read_rollouts(RUN, 3)
    assert record.step == 3
    assert len(record.rollout.completions) == len(record.rewards) == 4


def test_a_checkpoint_of_a_later_release_is_refused_with_what_to_do(tmp_path: Path) -> None:
    tree = json.loads((CHECKPOINT / MANIFEST_FILE).read_text())
    (tmp_path / MANIFEST_FILE).write_text(json.dumps({"schema_version": "2.0", **tree}))
    assert "another release wrote it; install that release here too" in (damage(tmp_path) or "")


def test_a_group_of_a_later_release_is_refused_with_what_to_do() -> None:
    tree = json.loads((RUN / "rollouts/step-000003.rank0.jsonl").read_text())
    with pytest.raises(InvalidInputError, match="install that release here too"):
        parse_record(json.dumps({"schema_version": "2.0", **tree}).encode(), "line 1")
