"""Where rows come from: tables in memory-mapped files, and JSON rows one a line.

A source counts its rows, gives one with its image, and all of them without. `docs/data.md` lists
the layouts. Paths of images count from the folder of the file that names them.
"""

import codecs
import json
import logging
import os
import re
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from scene_data.reading.chats import COLUMNS as CHAT_COLUMNS
from scene_data.reading.chats import graph_columns, image_of, is_chat
from scene_data.reading.json_stream import member_kinds, stream_values
from scene_data.reading.kept import Arrays, kept
from scene_data.reading.layouts import raw_layouts, unknown_json
from scene_data.reading.lines import find_lines
from scene_data.reading.parquet import ParquetFiles, ParquetRows, is_empty
from scene_data.reading.pictures import (
    LIST,
    PictureRows,
    find_pictures,
    is_pattern,
    is_picture,
    pictures_inside,
)
from scene_data.reading.refusal import PAGE, refusal
from scene_data.reading.rows import RowError
from services.errors import InvalidInputError

logger = logging.getLogger(__name__)

Row = Mapping[str, Any]

_ROWS = (".parquet", ".json", ".jsonl", ".h5", ".hdf5")
"""Ends of names of files that may hold rows"""
_FILES = (*_ROWS, ".csv", ".gz", ".txt")
"""Ends of names that are meant for files, there or not"""
_HUB_NAME = re.compile(r"^[\w.-]+/[\w.-]+(:[\w.-]+)?$")
_GRAPH_COLUMNS = ("objects", "relationships")
_IMAGES = ("image", "images")
_SIZE_COLUMNS = ("width", "height")
_ROWS_AT_ONCE = 1000
_FEWEST_ROWS = 10_000
_FEWEST_BYTES = 1 << 24
"""So many rows and bytes have a state"""
_SETTLED_S = 2.0
"""A file that was written later than so long ago may change without another time"""
_AT_ONCE = 1 << 20
"""Bytes that are read at once where a file is read from end to end"""
_LONGEST_LINE = 1 << 26
"""Bytes of a first line that is read to see whether it is a row"""


class Rows(Protocol):
    """A source."""

    def __len__(self) -> int: ...

    def row(self, index: int) -> Row:
        """One row with its image: bytes, a path, or a mapping with `bytes` or `path`."""

    def annotations(self, indexes: NDArray[np.int64] | None = None) -> Iterator[Row | RowError]:
        """All rows in order, or these; images left out, an error in place of what is no row."""

    def empty(self, column: str) -> NDArray[np.bool_]:
        """[rows] which ones have nothing in a column of lists, at a glance: False says nothing."""

    def place(self, index: int) -> str:
        """What a person finds the row by: `row 3`, counted from 0, or `line 4`."""

    @property
    def state(self) -> str | None:
        """What the content is known by, another one once it changes (`scene_data.reading.kept`).

        None where nobody can say, or where there is so little that reading it costs nothing.
        """


def is_hub_name(name: str) -> bool:
    """Whether a name that is no path here could be one of the hub's: `owner/name`."""
    if name.endswith(_FILES) or Path(name).exists():
        return False
    return _HUB_NAME.match(name) is not None


def split_of(file: Path) -> str:
    """The split in a file's name: `train` of `train-00000-of-00002.parquet`."""
    return re.split(r"[-_]\d", file.stem)[0]


def open_rows(
    name: str,
    extra: Sequence[str] = (),
    *,
    need_images: bool = True,
    need_graphs: bool = True,
) -> Rows:
    """The rows of a local path or a hub dataset.

    Args:
        name: Path or hub name.
        extra: Columns that are read beside the usual ones.
        need_images: Leave out JSON rows that name no image; they are counted in the log.
        need_graphs: False: the graph's columns may be missing, and pictures by themselves are rows.

    Raises:
        InvalidInputError: Nothing has that name, its layout is unknown, or it is one that has to be
            converted first.
    """
    place = Path(name)
    if not need_graphs and are_pictures(place):
        return PictureRows(find_pictures([name]))
    table = partial(_TableRows, name=name, extra=extra, need_graphs=need_graphs)
    if place.suffix == ".parquet" and place.is_file():
        return _open_parquet([place], table, place.parent)
    if place.is_file():
        _refuse_raw(place)
    if place.suffix in (".json", ".jsonl") and place.is_file():
        return _LineRows(place, need_images=need_images)
    if place.is_dir():
        return _open_folder(place, table, need_images=need_images)
    if is_hub_name(name):
        return table(_load_hub(name))
    found = "a file of another kind" if place.exists() else f"nothing there (from {Path.cwd()})"
    raise InvalidInputError(
        f"{name} is not a dataset: {found}; give a .parquet, .jsonl or .json file, a folder of "
        f"them, or a hub name owner/name ({PAGE})"
    )


def _refuse_raw(place: Path) -> None:
    for file, layout in raw_layouts(place).items():
        command = f"`sgg-rl data convert {file} --images FOLDER --output FOLDER`"
        raise refusal(file, f"it is {layout.title}", f"{command} makes a dataset of it")


def are_pictures(place: Path) -> bool:
    """Whether a name means pictures, and no file of rows about some."""
    if place.is_dir():
        rows = any(file.suffix in _ROWS for file in place.iterdir())
        return not rows and bool(pictures_inside(place))
    return is_picture(place) or place.suffix == LIST or is_pattern(str(place))


def _open_folder(folder: Path, table: Callable[..., Rows], *, need_images: bool) -> Rows:
    import datasets

    if (folder / "state.json").is_file():
        return table(datasets.load_from_disk(str(folder)), folder=folder)
    if (folder / "dataset_dict.json").is_file():
        splits = ", ".join(sorted(item.name for item in folder.iterdir() if item.is_dir()))
        raise refusal(folder, f"a saved dataset with the splits {splits}", "name the folder of one")
    if files := sorted(folder.glob("*.parquet")):
        splits = ", ".join(sorted({split_of(file) for file in files}))
        if "," in splits:
            wanted = "name one file, or put the files of one split in a folder of their own"
            raise refusal(folder, f"holds several splits ({splits})", wanted)
        return _open_parquet(files, table, folder)
    _refuse_raw(folder)
    if len(files := sorted([*folder.glob("*.json"), *folder.glob("*.jsonl")])) == 1:
        return _LineRows(files[0], need_images=need_images)
    raise refusal(
        folder,
        f"has neither parquet files, nor a save_to_disk dataset of one split, nor exactly one "
        f".jsonl or .json file (it has {len(files)})",
        _inner_folders(folder),
    )


def _inner_folders(folder: Path) -> str:
    """What to name in place of a folder without rows, as the hub's repositories have them."""
    inner = ", ".join(sorted({str(file.parent) for file in folder.glob("*/*.parquet")}))
    return f"name one of the folders with parquet files, {inner}" if inner else "name a file"


def _open_parquet(paths: list[Path], table: Callable[..., Rows], folder: Path) -> Rows:
    import datasets

    files = ParquetFiles(paths)
    states = [_settled_state(path) for path in paths]
    state = None if None in states else " ".join(map(str, states))
    datasets.disable_progress_bars()  # nothing is fetched; a bar would break the caller's output
    head = datasets.Dataset(files.head())
    return table(head, folder=folder, stored=lambda names: ParquetRows(files, names, state))


def _load_hub(name: str) -> Any:
    import datasets

    repository, _, split = name.partition(":")
    try:
        return datasets.load_dataset(repository, split=split or "train")
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise InvalidInputError(
            f"{name} is neither a local path nor a dataset that the hub gave: {error} ({PAGE})"
        ) from error


class _Stored(Protocol):
    """The columns of a table that are wanted."""

    state: str | None
    """As `Rows`, however few there are."""

    def __len__(self) -> int: ...

    def row(self, index: int) -> dict[str, Any]: ...

    def batches(
        self, columns: Sequence[str], indexes: NDArray[np.int64] | None = None
    ) -> Iterator[Any]:
        """Arrow batches of some columns of all rows, or of these, which are sorted."""

    def empty(self, column: str) -> NDArray[np.bool_]:
        """As `Rows`."""


class _SavedRows:
    """A memory-mapped `datasets.Dataset`."""

    def __init__(self, table: Any, fingerprint: str) -> None:
        self._table = table
        self.state: str | None = fingerprint  # of its content, in any process

    def __len__(self) -> int:
        return len(self._table)

    def row(self, index: int) -> dict[str, Any]:
        return dict(self._table[index])

    def batches(
        self, columns: Sequence[str], indexes: NDArray[np.int64] | None = None
    ) -> Iterator[Any]:
        # Arrow batches, not the table's own iterator: four times as fast.
        table = self._table.select_columns(list(columns)).with_format("arrow")
        if indexes is None:
            return iter(table.iter(_ROWS_AT_ONCE))
        starts = range(0, len(indexes), _ROWS_AT_ONCE)
        return (table[indexes[start : start + _ROWS_AT_ONCE]] for start in starts)

    def empty(self, column: str) -> NDArray[np.bool_]:
        return is_empty(self._table.data.column(column))


class _TableRows:
    """Rows of a table.

    Args:
        table: A `datasets.Dataset`: all of it, or its first row.
        name: For messages.
        extra: More columns that are read.
        folder: Where paths of images count from.
        need_graphs: False: the columns of the graph may be missing.
        stored: Gives all rows of such columns where the table has one alone.
    """

    def __init__(
        self,
        table: Any,
        name: str,
        extra: Sequence[str] = (),
        folder: Path = Path(),
        *,
        need_graphs: bool = True,
        stored: Callable[[list[str]], _Stored] | None = None,
    ) -> None:
        self._folder = folder
        self._is_chat = is_chat(table.column_names)
        self._image = next((key for key in _IMAGES if key in table.column_names), _IMAGES[0])
        graph = _GRAPH_COLUMNS if need_graphs and not self._is_chat else ()
        columns = _wanted(table, [*graph, self._image, *extra], is_chat=self._is_chat)
        if missing := [key for key in columns if key not in table.column_names]:
            also = ", or name the one with the thinking in sft.thinking_column" if extra else ""
            raise refusal(
                name,
                f"the dataset has no column {', '.join(missing)}; "
                f"it has {', '.join(table.column_names)}",
                f"rename its columns{also}",
            )
        if self._is_chat:
            _say_pixels(name, columns)
        # Some tables are saved with a format: their rows would be arrays.
        fingerprint = str(table._fingerprint)
        table = _undecoded(table.with_format(None).select_columns(columns), self._image, name)
        self._stored: _Stored = stored(columns) if stored else _SavedRows(table, fingerprint)
        self._columns = [column for column in columns if column != self._image]
        if self._image == "images":
            _check_one_each(self._stored, name)

    def __len__(self) -> int:
        return len(self._stored)

    def row(self, index: int) -> Row:
        row = self._stored.row(index)
        image = image_of({self._image: row.pop(self._image)})
        if isinstance(image, str):
            image = {"path": image}
        if isinstance(image, Mapping) and not image.get("bytes") and image.get("path"):
            image = {"path": self._folder / str(image["path"])}
        columns = graph_columns(row, index) if self._is_chat else {}
        return {**row, **columns, "image": image}

    def annotations(self, indexes: NDArray[np.int64] | None = None) -> Iterator[Row | RowError]:
        batches = self._stored.batches(self._columns, indexes)
        rows = (row for batch in batches for row in batch.to_pylist())
        if not self._is_chat:
            return rows
        numbers = range(len(self)) if indexes is None else indexes.tolist()
        return (_or_error(_with_graph, row, n) for n, row in zip(numbers, rows, strict=True))

    def empty(self, column: str) -> NDArray[np.bool_]:
        if column not in self._columns:
            return np.zeros(len(self), dtype=bool)
        return self._stored.empty(column)

    def place(self, index: int) -> str:
        return f"row {index}"

    @property
    def state(self) -> str | None:
        if self._stored.state is None or len(self) < _FEWEST_ROWS:
            return None
        return " ".join((self._stored.state, self._image, *self._columns))


def _wanted(table: Any, others: list[str], *, is_chat: bool) -> list[str]:
    """Columns that are needed, and those of the others that are there."""
    there = set(table.column_names)
    usual = (*_SIZE_COLUMNS, *_GRAPH_COLUMNS)
    optional = [*_SIZE_COLUMNS, "image_id", *CHAT_COLUMNS] if is_chat else usual
    needed = [*(() if is_chat else ("image_id",)), *others]
    return list(dict.fromkeys([*needed, *(key for key in optional if key in there)]))


def _undecoded(table: Any, column: str, name: str) -> Any:
    """The table with its images as they are stored."""
    import datasets

    image = datasets.Image(decode=False)
    kind = datasets.List(image) if column == "images" else image
    try:
        cast = table.cast_column(column, kind)
    except (TypeError, ValueError, NotImplementedError) as error:
        found = table.features[column]
        is_list = isinstance(found, list | datasets.List | datasets.LargeList)
        what = f"{column} is a list" if is_list else f"{column} is {found}"
        wanted = "one image a row: its bytes, a path, or {bytes, path}"
        raise refusal(name, what, wanted) from error
    return cast


def _with_graph(row: Row, number: int) -> Row:
    return {**row, **graph_columns(row, number)}


def _or_error(read: Callable[..., Row], *args: Any) -> Row | RowError:
    try:
        return read(*args)
    except RowError as error:
        return error


def _check_one_each(stored: _Stored, name: str) -> None:
    import pyarrow.compute as pc

    found = (pc.list_value_length(batch.column(0)) for batch in stored.batches(["images"]))
    lengths = np.array([length for each in found for length in pc.fill_null(each, 1).to_pylist()])
    if len(several := np.flatnonzero(lengths > 1)):
        row = int(several[0])
        raise refusal(
            name, f"images is a list of {lengths[row]}", "one image a row", row=f"row {row}"
        )


def _say_pixels(name: str, columns: Collection[str]) -> None:
    """Nothing in a chat shows what its boxes count in."""
    if "bbox_type" not in columns:
        logger.warning(
            "%s: chats without bbox_type: their boxes are taken for pixels of the image (norm1 and "
            "norm1000 are shares and thousandths)",
            name,
        )


class _LineRows:
    """JSON rows whose `image` is a path from the file's folder.

    JSONL is read where it lies; a JSON list is spooled item by item to a temporary file of lines.
    Of each row only its place in the file is in memory, and whether its lists are empty.
    """

    def __init__(self, path: Path, *, need_images: bool = True) -> None:
        self._folder = path.parent
        self.state = _file_state(path)
        self._is_jsonl = _has_lines(path)
        self._file = path.open("rb", _AT_ONCE) if self._is_jsonl else _spooled(path)
        self._found = kept(self.state, "lines", lambda: find_lines(self._file))
        self._lines = self._found["lines"]
        first = _or_error(self._json, 0) if len(self) else {}
        if not isinstance(first, RowError) and is_chat(first):
            _say_pixels(str(path), first)
        if need_images:
            self._leave_out_rows_without_image(path)

    def _have_images(self) -> Arrays:
        keep = self._found["names_image"].copy()
        unknown = np.flatnonzero(~keep)
        keep[unknown] = [
            isinstance(row, RowError) or bool(row.get("image")) for row in self.annotations(unknown)
        ]
        return {"keep": keep}

    def _leave_out_rows_without_image(self, path: Path) -> None:
        keep = kept(self.state, "rows with images", self._have_images)["keep"]
        if num := len(self) - int(np.count_nonzero(keep)):
            if num == len(self):
                raise refusal(
                    path,
                    f"none of its {num:,} rows names an image (`image`)",
                    "give each its picture's path, from this file's folder; only a reference of "
                    "`sgg-rl evaluate` needs none",
                )
            logger.info("%s: %d of %d rows have no image and are left out", path, num, len(self))
            self._found = {name: array[keep] for name, array in self._found.items()}
            self._lines = self._found["lines"]

    def __len__(self) -> int:
        return len(self._lines)

    def row(self, index: int) -> Row:
        row = self._read(index)
        image = row["image"]
        path = image.get("path") if isinstance(image, Mapping) else image
        return {**row, "image": {"path": self._folder / str(path)} if path else None}

    def annotations(self, indexes: NDArray[np.int64] | None = None) -> Iterator[Row | RowError]:
        wanted: Iterable[int] = range(len(self)) if indexes is None else indexes.tolist()
        return (_or_error(self._read, index) for index in wanted)

    def empty(self, column: str) -> NDArray[np.bool_]:
        return self._found[column]

    def place(self, index: int) -> str:
        number = int(self._lines[index, 2])
        return f"line {number + 1}" if self._is_jsonl else f"row {number}"

    def _read(self, index: int) -> Row:
        row = self._json(index)
        image = image_of(row)
        columns = graph_columns(row, int(self._lines[index, 2])) if is_chat(row) else {}
        return {**row, **columns, "image": image}

    def _json(self, index: int) -> Row:
        start, end, _ = self._lines[index].tolist()
        # pread, not seek and read: threads read rows at the same time.
        text = os.pread(self._file.fileno(), end - start, start)
        try:
            row = json.loads(text.decode("utf-8-sig"))  # of bytes it would guess UTF-16 too
        except UnicodeDecodeError as error:
            raise RowError(f"not UTF-8 text: {error}") from error
        except (ValueError, RecursionError) as error:
            raise RowError(f"not JSON: {error}") from error
        if not isinstance(row, dict):
            raise RowError("not a JSON object")
        return row


def _file_state(path: Path) -> str | None:
    return None if path.stat().st_size < _FEWEST_BYTES else _settled_state(path)


def _settled_state(path: Path) -> str | None:
    status = path.stat()
    if time.time() - status.st_mtime < _SETTLED_S:
        return None
    return f"{path.resolve()} {status.st_size} {status.st_mtime_ns} {status.st_ino}"


def _has_lines(path: Path) -> bool:
    """Whether each line is a row of its own; else rows are a list, or go over several lines.

    Raises:
        InvalidInputError: It is JSON of another layout, no UTF-8, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            start = file.read(4096).removeprefix(codecs.BOM_UTF8).lstrip()
            if start[:1] != b"[" and b"\n" not in start:
                start += file.readline(_LONGEST_LINE)
    except OSError as error:
        raise InvalidInputError(f"cannot read {path}: {error.strerror}") from error
    start = start.partition(b"\n")[0].strip()
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in start[:4]:
        raise refusal(path, "UTF-16 or UTF-32 text", "save it as UTF-8")
    if start[:1] == b"{" and path.suffix == ".json":
        keys = {name for name, _ in member_kinds(path)}
        if "objects" not in keys and not is_chat(keys):
            raise unknown_json(path)
    return _is_object(start) or (path.suffix == ".jsonl" and start[:1] != b"[" and start != b"{")


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _spooled(path: Path) -> BinaryIO:
    file = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the dataset does
    for item in stream_values(path):
        file.write(json.dumps(item).encode() + b"\n")
    file.flush()
    file.seek(0)
    return file
