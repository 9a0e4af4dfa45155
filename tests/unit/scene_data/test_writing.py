from pathlib import Path

import pyarrow.parquet as pq
import pytest

from scene_data import writing
from scene_data.writing import graph_row, jsonl_writer, parquet_writer
from scene_graph.graph import SceneGraph, SceneObject

ROW = graph_row(
    "1",
    b"x" * 100,
    "1.jpg",
    (64, 48),
    SceneGraph(objects=(SceneObject(id="man.1", bbox=(1, 2, 3, 4)),), relationships=()),
)


@pytest.mark.parametrize("writer", [parquet_writer, jsonl_writer])
def test_a_file_has_its_name_only_when_it_is_whole(tmp_path: Path, writer: object) -> None:
    path = tmp_path / "train"

    def write(num: int) -> None:
        with writer(path) as add:  # type: ignore[operator]
            for _ in range(num):
                add(ROW)
                assert not path.exists()
            assert num == 3, "the power went off"

    with pytest.raises(AssertionError, match="power"):
        write(2)
    assert not list(tmp_path.iterdir())
    write(3)
    assert [file.name for file in tmp_path.iterdir()] == ["train"]


@pytest.mark.parametrize(("rows", "size", "groups"), [(4, 10_000, 3), (100, 250, 4), (100, 1, 10)])
def test_row_groups_are_bounded_by_rows_and_by_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int, size: int, groups: int
) -> None:
    monkeypatch.setattr(writing, "ROWS_AT_ONCE", rows)
    monkeypatch.setattr(writing, "BYTES_AT_ONCE", size)
    with parquet_writer(tmp_path / "x.parquet") as add:
        for _ in range(10):
            add(ROW)
    found = pq.ParquetFile(tmp_path / "x.parquet")
    assert (found.metadata.num_rows, found.metadata.num_row_groups) == (10, groups)
