"""Images with their scene graphs, from any of the layouts in `docs/data.md`, read when asked for.

| `open_dataset` of | is read as |
|---|---|
| a `.parquet` file, or a folder of one split's parquet files | Hugging Face rows |
| a folder written by `datasets`' `save_to_disk` | the same |
| a `.json` file, or a folder with exactly one | a list of rows whose `image` is a path beside it |
| `owner/name` or `owner/name:split`, where no such path exists | the same, from the hub |

A row has image_id, image, objects `[{"id": "man.1", "bbox": [x1, y1, x2, y2]}]` (pixels) and
relationships `[{"subject", "predicate", "object"}]`; the lists may be JSON strings. A column of
text that leads to the graph (thinking) is read where it is asked for.
"""

import io
import json
import logging
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from scene_data.rows import RowError, read_graph, read_thinking
from scene_graph.graph import SceneGraph
from services.errors import InvalidInputError

logger = logging.getLogger(__name__)

MAX_BROKEN_ROWS = 5
"""Broken rows that any dataset may have."""
MAX_BROKEN_SHARE = 0.01
"""Share of broken rows that a large one may have."""
NUM_LISTED = 20

_HUB_NAME = re.compile(r"^[\w.-]+/[\w.-]+(:[\w.-]+)?$")
_COLUMNS = ("image_id", "image", "objects", "relationships")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One image and what it shows."""

    image_id: str
    image_bytes: bytes
    """The encoded file (PNG, JPEG), as it is in the dataset."""
    width: int
    """Of the image, in pixels."""
    height: int
    graph: SceneGraph
    """Boxes in pixels of this image."""
    thinking: str | None = None
    """Text before the answer, where the dataset was opened with a column for it."""


class Rows(Protocol):
    """Where rows come from."""

    def __len__(self) -> int: ...

    def row(self, index: int) -> Mapping[str, Any]:
        """One row with its image: bytes, a path, or a mapping with `bytes` or `path`."""

    def annotations(self) -> Iterator[Mapping[str, Any]]:
        """All rows in order, images left out."""


class SceneDataset:
    """The usable rows of a source.

    Opening reads all annotations once, to know which rows are usable, and keeps one number a row.

    Args:
        rows: The source.
        name: For messages.
        thinking_column: Of text that every usable row must have.

    Raises:
        InvalidInputError: More than `max(MAX_BROKEN_ROWS, MAX_BROKEN_SHARE * rows)` rows are
            broken, or none is left.
    """

    def __init__(self, rows: Rows, name: str, *, thinking_column: str | None = None) -> None:
        self._rows = rows
        self._name = name
        self._thinking = thinking_column
        self._usable = _usable_rows(rows, name, thinking_column)

    def __len__(self) -> int:
        return len(self._usable)

    def __getitem__(self, index: int) -> Sample:
        """The sample of a usable row.

        Raises:
            IndexError: There are not that many.
            InvalidInputError: Its image is missing or is not an image.
        """
        from PIL import Image

        row = self._rows.row(self._usable[index])
        image_id = str(row["image_id"])
        try:
            data = _image_bytes(row["image"])
            with Image.open(io.BytesIO(data)) as image:
                width, height = image.size
        except (OSError, TypeError, KeyError) as error:
            raise InvalidInputError(
                f"{self._name}: image {image_id} is not readable: {error}"
            ) from error
        return Sample(
            image_id=image_id,
            image_bytes=data,
            width=width,
            height=height,
            graph=read_graph(row)[0],
            thinking=read_thinking(row, self._thinking) if self._thinking else None,
        )

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))


def is_hub_name(name: str) -> bool:
    """Whether a name that is no path here could be one of the hub's: `owner/name`."""
    return not Path(name).exists() and _HUB_NAME.match(name) is not None


def open_dataset(path: str | Path, *, thinking_column: str | None = None) -> SceneDataset:
    """Open a local path or a hub dataset; see the table above.

    Args:
        path: Or a hub name.
        thinking_column: Read this text with each row.

    Raises:
        InvalidInputError: Nothing has that name, its layout is unknown, or too much is broken.
    """
    extra = [thinking_column] if thinking_column else []
    rows = _open_rows(str(path), Path(path), extra)
    return SceneDataset(rows, str(path), thinking_column=thinking_column)


def _open_rows(name: str, place: Path, extra: list[str]) -> Rows:
    if place.suffix == ".parquet" and place.is_file():
        return _TableRows(_load_parquet([place]), extra)
    if place.suffix == ".json" and place.is_file():
        return _JsonRows(place)
    if place.is_dir():
        return _open_folder(place, extra)
    if is_hub_name(name):
        return _TableRows(_load_hub(name), extra)
    raise InvalidInputError(
        f"{name} is not a dataset: give a .parquet or .json file, a folder of them, "
        "or a hub name owner/name"
    )


def _open_folder(folder: Path, extra: list[str]) -> Rows:
    import datasets

    if (folder / "state.json").is_file():
        return _TableRows(datasets.load_from_disk(str(folder)), extra)
    if files := sorted(folder.glob("*.parquet")):
        splits = {re.split(r"[-_]\d", file.stem)[0] for file in files}
        if len(splits) > 1:
            raise InvalidInputError(
                f"{folder} holds several splits ({', '.join(sorted(splits))}): name one file"
            )
        return _TableRows(_load_parquet(files), extra)
    if len(files := sorted(folder.glob("*.json"))) == 1:
        return _JsonRows(files[0])
    raise InvalidInputError(
        f"{folder} has neither parquet files, nor a save_to_disk dataset of one split, "
        "nor exactly one .json file"
    )


def _load_parquet(files: list[Path]) -> Any:
    import datasets

    names = [str(file.resolve()) for file in files]
    datasets.disable_progress_bars()  # nothing is fetched; a bar would break the caller's output
    try:
        # Becomes a memory-mapped file in datasets' cache: a row costs one read, not a row group.
        return datasets.load_dataset("parquet", data_files=names, split="train")
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

    def __init__(self, table: Any, extra: list[str]) -> None:
        import datasets

        columns = [*_COLUMNS, *extra]
        if missing := [name for name in columns if name not in table.column_names]:
            raise InvalidInputError(
                f"the dataset has no column {', '.join(missing)}; "
                f"it has {', '.join(table.column_names)}. Rename its columns"
                + (", or name the one with the thinking in sft.thinking_column" if extra else "")
            )
        self._table = table.select_columns(columns).cast_column(
            "image", datasets.Image(decode=False)
        )

    def __len__(self) -> int:
        return len(self._table)

    def row(self, index: int) -> Mapping[str, Any]:
        row: Mapping[str, Any] = self._table[index]
        return row

    def annotations(self) -> Iterator[Mapping[str, Any]]:
        return iter(self._table.remove_columns("image"))


class _JsonRows:
    """A JSON list, spooled row by row to a temporary file; rows without an image are left out."""

    def __init__(self, path: Path) -> None:
        try:
            rows = json.loads(path.read_bytes())
        except ValueError as error:
            raise InvalidInputError(f"{path} is not JSON: {error}") from error
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise InvalidInputError(f"{path} is not a list of rows")
        self._folder = path.parent
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the dataset does
        self._offsets: list[int] = []
        with_image = [row for row in rows if row.get("image")]
        for row in with_image:
            self._offsets.append(self._file.tell())
            self._file.write(json.dumps(row).encode() + b"\n")
        if skipped := len(rows) - len(with_image):
            logger.info(
                "%s: %d of %d rows have no image and are left out", path, skipped, len(rows)
            )

    def __len__(self) -> int:
        return len(self._offsets)

    def row(self, index: int) -> Mapping[str, Any]:
        self._file.seek(self._offsets[index])
        row: dict[str, Any] = json.loads(self._file.readline())
        return {**row, "image": {"path": self._folder / str(row["image"])}}

    def annotations(self) -> Iterator[Mapping[str, Any]]:
        return (self.row(index) for index in range(len(self)))


def _usable_rows(rows: Rows, name: str, thinking_column: str | None) -> list[int]:
    usable: list[int] = []
    broken: list[str] = []
    dropped: Counter[str] = Counter()
    for index, row in enumerate(rows.annotations()):
        try:
            dropped.update(read_graph(row)[1])
            if thinking_column:
                read_thinking(row, thinking_column)
        except RowError as error:
            broken.append(f"row {index} (image {row.get('image_id')}): {error}")
        else:
            usable.append(index)
    listed = "\n".join(f"  {line}" for line in broken[:NUM_LISTED])
    if len(broken) > max(MAX_BROKEN_ROWS, MAX_BROKEN_SHARE * len(rows)) or not usable:
        raise InvalidInputError(
            f"{name}: {len(broken)} of {len(rows)} rows are broken, {len(usable)} usable:\n{listed}"
        )
    if broken:
        logger.warning("%s: skipped %d of %d rows:\n%s", name, len(broken), len(rows), listed)
    if dropped:
        logger.warning("%s: dropped parts of annotations: %s", name, dict(dropped))
    return usable


def _image_bytes(image: Any) -> bytes:
    if isinstance(image, Mapping):
        return image.get("bytes") or Path(image["path"]).read_bytes()
    return bytes(image) if isinstance(image, bytes) else Path(image).read_bytes()
