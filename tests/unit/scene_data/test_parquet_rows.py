"""Parquet is read where it lies, and unpacked row group by row group."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scene_data.dataset import UnusableRowError, open_dataset
from scene_data.reading import sources
from scene_data.reading.parquet import is_empty
from services.errors import InvalidInputError
from tests.raw_annotations import picture

OBJECTS = '[{"id": "man.1", "bbox": [1, 2, 30, 40]}]'
NUM, GROUP = 60, 7


def table(first: int = 0, **changes: Any) -> pa.Table:
    columns = {
        "image_id": [str(first + number) for number in range(NUM)],
        "image": [{"bytes": picture(), "path": "a.jpg"}] * NUM,
        "objects": [OBJECTS] * NUM,
        "relationships": ["[]"] * NUM,
        "width": pa.array([64] * NUM, pa.int32()),
        "height": [48] * NUM,
    }
    return pa.table({**columns, **changes})


@pytest.fixture
def unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where row groups are unpacked; files settle at once."""
    monkeypatch.delenv("HF_DATASETS_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(sources, "_SETTLED_S", 0)
    return tmp_path / "home/sgg-rl/rows"


def test_opening_copies_nothing_and_a_row_unpacks_its_group(
    tmp_path: Path, unpacked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "train.parquet"
    pq.write_table(table(), path, row_group_size=GROUP)
    dataset = open_dataset(path)
    assert not unpacked.exists()
    with ThreadPoolExecutor(8) as pool:
        samples = list(pool.map(dataset.__getitem__, [20, 0, 14, 20, 59]))
    assert [sample.image_id for sample in samples] == ["20", "0", "14", "20", "59"]
    assert all(sample.image_bytes == picture() for sample in samples)
    assert {file.name for file in unpacked.rglob("*.*")} == {"0.arrow", "2.arrow", "8.arrow"}
    assert [sample.image_id for sample in dataset] == [str(number) for number in range(NUM)]
    assert len(list(unpacked.rglob("*.*"))) == 9
    pq.write_table(table(first=100), path, row_group_size=GROUP)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "large"))
    assert open_dataset(path)[0].image_id == "100", "another file, other rows"
    assert len(list((tmp_path / "large/sgg-rl").rglob("*.*"))) == 1


def test_large_row_groups_are_unpacked_piece_by_piece(
    tmp_path: Path, unpacked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scene_data.reading.parquet._ROWS_AT_ONCE", 11)
    pq.write_table(table(), tmp_path / "train.parquet", row_group_size=40)
    dataset = open_dataset(tmp_path / "train.parquet")
    assert [sample.image_id for sample in dataset] == [str(number) for number in range(NUM)]
    assert len(list(unpacked.rglob("*.*"))) == 2


def test_rows_are_read_where_nothing_can_be_kept(
    tmp_path: Path, unpacked: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "home").write_text("a file where a folder should be")
    pq.write_table(table(), tmp_path / "train.parquet", row_group_size=GROUP)
    samples = list(open_dataset(tmp_path / "train.parquet"))
    assert [sample.image_id for sample in samples] == [str(number) for number in range(NUM)]
    assert caplog.text.count("rows are not unpacked into") == 1


def test_a_damaged_row_group_costs_its_own_rows(tmp_path: Path, unpacked: Path) -> None:
    path = tmp_path / "train.parquet"
    pq.write_table(table(), path, row_group_size=GROUP, compression="gzip")
    images = pq.ParquetFile(path).metadata.row_group(1).column(1)
    assert images.path_in_schema == "image.bytes"
    content = bytearray(path.read_bytes())
    start = images.dictionary_page_offset or images.data_page_offset
    content[start : start + images.total_compressed_size] = bytes(images.total_compressed_size)
    path.write_bytes(content)
    dataset = open_dataset(path)
    with pytest.raises(UnusableRowError, match=r"row 7: .*train.parquet: not readable parquet"):
        dataset[GROUP]
    assert len(list(dataset)) == NUM - GROUP
    objects = pq.ParquetFile(path).metadata.row_group(1).column(3)
    assert objects.path_in_schema == "objects"
    start = objects.dictionary_page_offset or objects.data_page_offset
    content[start : start + objects.total_compressed_size] = bytes(objects.total_compressed_size)
    path.write_bytes(content)
    with pytest.raises(InvalidInputError, match=r"not readable parquet .*write it again"):
        open_dataset(path)


def test_files_of_a_split_have_the_same_columns(tmp_path: Path, unpacked: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    order = ["relationships", "objects", "height", "width", "image", "image_id"]
    heights = pa.array([48] * NUM, pa.int16())
    pq.write_table(table(), folder / "train-0.parquet")
    pq.write_table(table(first=NUM, height=heights).select(order), folder / "train-1.parquet")
    ids = [sample.image_id for sample in open_dataset(folder)]
    assert ids == [str(number) for number in range(2 * NUM)]
    for changed, found in (
        (table().drop_columns("height"), "its columns are image_id, .*, not those of train-0"),
        (table(height=["48"] * NUM, objects=[1] * NUM), None),
        (table(image=[[1]] * NUM), "its columns are not those of train-0.parquet"),
    ):
        pq.write_table(changed, folder / "train-2.parquet")
        if found:
            with pytest.raises(InvalidInputError, match=rf"train-2.parquet: {found}"):
                open_dataset(folder)


def test_a_file_without_rows_says_so(tmp_path: Path, unpacked: Path) -> None:
    pq.write_table(table().slice(0, 0), tmp_path / "train.parquet")
    with pytest.raises(InvalidInputError, match="no row in it"):
        open_dataset(tmp_path / "train.parquet")


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        (["[]", "[{}]", None, "", "[ ]"], pa.string()),
        (["[]", "[{}]", None, "", "[ ]"], pa.large_string()),
        ([[], [1], None, [], [None]], pa.list_(pa.int64())),
        ([{"id": []}, {"id": ["a"]}, None, {"id": []}, {"id": ["b"]}], None),
    ],
)
def test_what_is_empty(cells: list[Any], kind: Any) -> None:
    assert is_empty(pa.array(cells, kind)).tolist() == [True, False, True, True, False]


def test_what_nobody_knows_is_not_empty() -> None:
    assert not is_empty(pa.array([1, None])).any()
