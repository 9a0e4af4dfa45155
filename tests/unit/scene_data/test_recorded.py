"""Pictures of groups, seen from another folder than the one in which the run was started."""

import hashlib
from pathlib import Path

import pytest

from scene_data.reading.images import image_bytes
from scene_data.reading.sources import open_rows
from scene_data.recorded import recorded_picture
from scene_data.toy.scenes import make_toy
from services.run_folder import RunFolder


def test_a_relative_dataset_is_found_above_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_toy(tmp_path / "here" / "toy", num_train=3, num_heldout=1)
    (tmp_path / "here" / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    run = RunFolder(Path("../here/runs/mine"))
    rows = open_rows(str(tmp_path / "here/toy/train.parquet"))
    data = image_bytes(rows.row(2)["image"])
    sha256 = hashlib.sha256(data).hexdigest()
    assert recorded_picture(run, "toy/train.parquet", sha256, 1) == data
    assert recorded_picture(run, "toy/none.parquet", sha256, 1) is None
    assert recorded_picture(run, None, sha256, 1) is None
