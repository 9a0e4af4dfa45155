"""What opening a large dataset found is kept until the dataset changes."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scene_data.dataset import SceneDataset, open_dataset
from scene_data.reading import sources
from scene_data.writing import parquet_writer
from services.errors import InvalidInputError
from tests.raw_annotations import picture

OBJECTS = [{"id": "man.1", "bbox": [1, 2, 30, 40]}, {"id": "hat.2", "bbox": [5, 6, 20, 21]}]
EDGE = {"subject": "hat.2", "predicate": "on", "object": "man.1"}
ROWS: list[dict[str, Any]] = [
    {"objects": OBJECTS, "relationships": [EDGE]},
    {"objects": OBJECTS, "relationships": []},
    {"objects": [], "relationships": []},
    {"objects": OBJECTS, "relationships": [EDGE, EDGE]},
]


def write(folder: Path, layout: str, rows: list[dict[str, Any]]) -> Path:
    file = folder / f"train.{layout}"
    full = [{"image_id": str(n), "width": 64, "height": 48, **row} for n, row in enumerate(rows)]
    if layout == "parquet":
        with parquet_writer(file) as add:
            for row in full:
                add({**row, "image": {"bytes": picture(), "path": None}})
    else:
        (folder / "a.jpg").write_bytes(picture())
        more = [{**row, "image": None} for row in full[:1]]
        lines = [json.dumps({"image": "a.jpg", **row}) for row in (*more, *full)]
        file.write_text("\n".join(lines))
    return file


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """All sources are large ones, and files settle at once."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    for name in ("_FEWEST_ROWS", "_FEWEST_BYTES", "_SETTLED_S"):
        monkeypatch.setattr(sources, name, 0)
    return tmp_path / "home"


def without_reading(file: Path, **options: Any) -> SceneDataset:
    """Opened by a process that would fail if it read annotations."""

    def annotations(self: object) -> Iterator[Any]:
        pytest.fail("annotations are read")

    with pytest.MonkeyPatch.context() as patch:
        for kind in (sources._TableRows, sources._LineRows):
            patch.setattr(kind, "annotations", annotations)
        return open_dataset(file, task="sgg", **options)


@pytest.mark.parametrize("layout", ["parquet", "jsonl"])
def test_annotations_are_read_once(
    tmp_path: Path, home: Path, layout: str, caplog: pytest.LogCaptureFixture
) -> None:
    file = write(tmp_path, layout, ROWS)
    first, said = open_dataset(file, task="sgg"), caplog.messages.copy()
    digest = first.digest()
    caplog.clear()
    again = without_reading(file)
    for name, array in again.check.as_arrays().items():
        assert array.tolist() == first.check.as_arrays()[name].tolist()
    assert (again.check.num_broken, again.check.num_unrelated) == (1, 1)
    assert [sample.image_id for sample in again] == ["0", "3"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SceneDataset, "_digest", lambda _: pytest.fail("annotations are read"))
        assert again.digest() == digest
    assert caplog.messages == said
    assert len(open_dataset(file, task="det")) == 3, "for another task another check"
    for kept in (home / "sgg-rl").rglob("*.*"):
        kept.write_bytes(kept.read_bytes()[:99])
    assert [sample.image_id for sample in open_dataset(file, task="sgg")] == ["0", "3"]
    write(tmp_path, layout, [*ROWS, ROWS[0]])
    os.utime(file, (1e9, 1e9))
    changed = open_dataset(file, task="sgg")
    assert [sample.image_id for sample in changed] == ["0", "3", "4"]
    assert changed.digest() != digest


def test_what_cannot_be_kept_is_found_again(
    tmp_path: Path, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    home.write_text("a file where a folder should be")
    file = write(tmp_path, "jsonl", ROWS)
    for _ in range(2):
        caplog.clear()
        assert len(open_dataset(file)) == 3
        assert "is not kept in" in caplog.text


def test_another_process_says_what_is_usable(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "_FEWEST_ROWS", 5)
    file = write(tmp_path, "parquet", ROWS)
    usable = open_dataset(file, task="sgg").check.usable
    there = without_reading(file, usable=usable)
    assert not home.exists(), "a small one is not worth a file"
    assert [sample.image_id for sample in there] == ["0", "3"]
    with pytest.raises(InvalidInputError, match="has 4 rows here, and 3 where the run's first"):
        open_dataset(file, usable=usable[:3])
