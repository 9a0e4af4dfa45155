"""Where rows come from: tables in memory-mapped files, and JSON rows one a line.

A source counts its rows, gives one with its image, and all of them without. `docs/data.md` lists
the layouts.
"""

import json
import logging
import os
import re
import tempfile
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from scene_data.json_stream import stream_items
from scene_data.rows import RowError
from services.errors import InvalidInputError

logger = logging.getLogger(__name__)

Row = Mapping[str, Any]

_HUB_NAME = re.compile(r"^[\w.-]+/[\w.-]+(:[\w.-]+)?$")
_COLUMNS = ("image_id", "image", "objects", "relationships")
_SIZE_COLUMNS = ("width", "height")
_ROWS_AT_ONCE = 1000


class Rows(Protocol):
    """A source."""

    def __len__(self) -> int: ...

    def row(self, index: int) -> Row:
        """One row with its image: bytes, a path, or a mapping with `bytes` or `path`."""

    def annotations(self) -> Iterator[Row | RowError]:
        """All rows in order, images left out; an error in place of what is no row at all."""

    def place(self, index: int) -> str:
        """What a person finds the row by: `row 3`, counted from 0, or `line 4`."""


def is_hub_name(name: str) -> bool:
    """Whether a name that is no path here could be one of the hub's: `owner/name`."""
    return not Path(name).exists() and _HUB_NAME.match(name) is not None


def split_of(file: Path) -> str:
    """The split in a file's name: `train` of `train-00000-of-00002.parquet`."""
    return re.split(r"[-_]\d", file.stem)[0]


def open_rows(name: str, extra: Sequence[str] = (), *, need_images: bool = True) -> Rows:
    """The rows of a local path or a hub dataset.

    Args:
        name: Path or hub name.
        extra: Columns that are read beside the usual ones.
        need_images: Leave out JSON rows that name no image; they are counted in the log.

    Raises:
        InvalidInputError: Nothing has that name, or its layout is unknown.
    """
    place = Path(name)
    if place.suffix == ".parquet" and place.is_file():
        return _TableRows(_load_parquet([place]), extra)
    if place.suffix in (".json", ".jsonl") and place.is_file():
        return _LineRows(place, need_images=need_images)
    if place.is_dir():
        return _open_folder(place, extra, need_images=need_images)
    if is_hub_name(name):
        return _TableRows(_load_hub(name), extra)
    raise InvalidInputError(
        f"{name} is not a dataset: give a .parquet, .jsonl or .json file, a folder of them, "
        "or a hub name owner/name"
    )


def _open_folder(folder: Path, extra: Sequence[str], *, need_images: bool) -> Rows:
    import datasets

    if (folder / "state.json").is_file():
        return _TableRows(datasets.load_from_disk(str(folder)), extra)
    if files := sorted(folder.glob("*.parquet")):
        splits = {split_of(file) for file in files}
        if len(splits) > 1:
            raise InvalidInputError(
                f"{folder} holds several splits ({', '.join(sorted(splits))}): name one file"
            )
        return _TableRows(_load_parquet(files), extra)
    if len(files := sorted([*folder.glob("*.json"), *folder.glob("*.jsonl")])) == 1:
        return _LineRows(files[0], need_images=need_images)
    raise InvalidInputError(
        f"{folder} has neither parquet files, nor a save_to_disk dataset of one split, "
        "nor exactly one .jsonl or .json file: name a file"
    )


def _load_parquet(files: list[Path]) -> Any:
    import datasets
    from pyarrow.dataset import ParquetFragmentScanOptions

    names = [str(file.resolve()) for file in files]
    # Arrow's default keeps all of a file that it has read until its end.
    row_groups_only = ParquetFragmentScanOptions(pre_buffer=False)
    datasets.disable_progress_bars()  # nothing is fetched; a bar would break the caller's output
    try:
        # Becomes a memory-mapped file in datasets' cache: a row costs one read, not a row group.
        return datasets.load_dataset(
            "parquet", data_files=names, split="train", fragment_scan_options=row_groups_only
        )
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise InvalidInputError(f"{files[0]} is not readable parquet: {error}") from error


def _load_hub(name: str) -> Any:
    import datasets

    repository, _, split = name.partition(":")
    try:
        return datasets.load_dataset(repository, split=split or "train")
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise InvalidInputError(
            f"{name} is neither a local path nor a dataset that the hub gave: {error}"
        ) from error


class _TableRows:
    """A memory-mapped `datasets.Dataset`."""

    def __init__(self, table: Any, extra: Sequence[str] = ()) -> None:
        import datasets

        columns = [*_COLUMNS, *extra]
        if missing := [name for name in columns if name not in table.column_names]:
            raise InvalidInputError(
                f"the dataset has no column {', '.join(missing)}; "
                f"it has {', '.join(table.column_names)}. Rename its columns"
                + (", or name the one with the thinking in sft.thinking_column" if extra else "")
            )
        columns += [name for name in _SIZE_COLUMNS if name in table.column_names]
        self._table = table.select_columns(columns).cast_column(
            "image", datasets.Image(decode=False)
        )

    def __len__(self) -> int:
        return len(self._table)

    def row(self, index: int) -> Row:
        row: Row = self._table[index]
        return row

    def annotations(self) -> Iterator[Row]:
        # Arrow batches, not the table's own iterator: four times as fast.
        batches = self._table.remove_columns("image").with_format("arrow").iter(_ROWS_AT_ONCE)
        return (row for batch in batches for row in batch.to_pylist())

    def place(self, index: int) -> str:
        return f"row {index}"


class _LineRows:
    """JSON rows whose `image` is a path from the file's folder.

    JSONL is read where it lies; a JSON list is spooled item by item to a temporary file of lines.
    Of each row only its place in the file is kept.
    """

    def __init__(self, path: Path, *, need_images: bool = True) -> None:
        self._folder = path.parent
        self._is_jsonl = path.suffix == ".jsonl"
        self._file = self._open(path)
        self._starts, self._ends, self._numbers = _lines(self._file)
        if need_images:
            self._leave_out_rows_without_image(path)

    def _open(self, path: Path) -> BinaryIO:
        try:
            return path.open("rb") if self._is_jsonl else _spooled(path)
        except OSError as error:
            raise InvalidInputError(f"cannot read {path}: {error.strerror}") from error

    def _leave_out_rows_without_image(self, path: Path) -> None:
        rows = enumerate(self.annotations())
        keep = np.array([isinstance(row, RowError) or bool(row.get("image")) for _, row in rows])
        if num := len(self) - int(np.count_nonzero(keep)):
            logger.info("%s: %d of %d rows have no image and are left out", path, num, len(self))
            self._starts, self._ends = self._starts[keep], self._ends[keep]
            self._numbers = self._numbers[keep]

    def __len__(self) -> int:
        return len(self._starts)

    def row(self, index: int) -> Row:
        row = self._read(index)
        if isinstance(row, RowError):
            raise row
        image = row.get("image")
        return {**row, "image": {"path": self._folder / str(image)} if image else None}

    def annotations(self) -> Iterator[Row | RowError]:
        return (self._read(index) for index in range(len(self)))

    def place(self, index: int) -> str:
        number = int(self._numbers[index])
        return f"line {number + 1}" if self._is_jsonl else f"row {number}"

    def _read(self, index: int) -> Row | RowError:
        start, end = int(self._starts[index]), int(self._ends[index])
        # pread, not seek and read: threads read rows at the same time.
        text = os.pread(self._file.fileno(), end - start, start)
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            return RowError(f"not JSON: {error}")
        return row if isinstance(row, dict) else RowError("not a JSON object")


def _spooled(path: Path) -> BinaryIO:
    file = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the dataset does
    for item in stream_items(path):
        file.write(json.dumps(item).encode() + b"\n")
    file.flush()
    file.seek(0)
    return file


def _lines(file: BinaryIO) -> tuple[Any, Any, Any]:
    """[N] int64 starts, ends and numbers (from 0) of the lines that are not blank."""
    starts, ends, numbers = array("q"), array("q"), array("q")
    start = 0
    for number, line in enumerate(file):
        if line.strip():
            starts.append(start)
            ends.append(start + len(line))
            numbers.append(number)
        start += len(line)
    return np.asarray(starts), np.asarray(ends), np.asarray(numbers)
