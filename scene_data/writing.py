"""Rows to parquet or JSON lines, in files that appear whole or not at all."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from scene_graph.graph import SceneGraph

ROWS_AT_ONCE = 100
"""Rows of a row group, at most: as many as `datasets` writes where there are images."""
BYTES_AT_ONCE = 32 * 1024 * 1024
"""Bytes of the images in a row group, before the last one."""

WriteRow = Callable[[Mapping[str, Any]], object]
"""Adds a row, as `graph_row` makes it."""


def graph_row(
    image_id: str, image: bytes | None, name: str, size: tuple[int, int], graph: SceneGraph
) -> dict[str, Any]:
    """A row of `docs/data.md`, with lists as lists.

    Args:
        image_id: The row's.
        image: The encoded file; None for annotations alone.
        name: The image file's name, for people who unpack it.
        size: Width and height of the image in pixels.
        graph: Boxes in pixels.
    """
    return {
        "image_id": image_id,
        "image": None if image is None else {"bytes": image, "path": name},
        "width": size[0],
        "height": size[1],
        **asdict(graph),
    }


@contextmanager
def parquet_writer(path: Path) -> Iterator[WriteRow]:
    """Write rows with their images; the file has its name once the block has ended well."""
    import pyarrow.parquet as pq

    with _whole(path) as partial, pq.ParquetWriter(partial, _schema()) as file:
        rows = _ParquetRows(file)
        yield rows.write
        rows.flush()


@contextmanager
def jsonl_writer(path: Path) -> Iterator[WriteRow]:
    """Write annotations without images, as `sgg-rl evaluate` takes them; the same promise."""
    with (
        _whole(path) as partial,
        partial.open("w", encoding="utf-8", errors="backslashreplace") as file,
    ):

        def write(row: Mapping[str, Any]) -> None:
            kept = {key: value for key, value in row.items() if key != "image"}
            file.write(json.dumps(kept, ensure_ascii=False) + "\n")

        yield write


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


class _ParquetRows:
    """Holds one row group."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._rows: list[dict[str, Any]] = []
        self._bytes = 0

    def write(self, row: Mapping[str, Any]) -> None:
        lists = {key: json.dumps(row[key]) for key in ("objects", "relationships")}
        self._rows.append({**row, **lists})
        self._bytes += len(row["image"]["bytes"])
        if len(self._rows) == ROWS_AT_ONCE or self._bytes >= BYTES_AT_ONCE:
            self.flush()

    def flush(self) -> None:
        import pyarrow as pa

        if self._rows:
            self._file.write_table(pa.Table.from_pylist(self._rows, schema=self._file.schema))
        self._rows, self._bytes = [], 0


def _schema() -> Any:
    """Columns, marked so that `datasets` decodes the image."""
    from datasets import Features, Image, Value

    columns = {
        "image_id": Value("string"),
        "image": Image(),
        "width": Value("int32"),
        "height": Value("int32"),
        "objects": Value("string"),
        "relationships": Value("string"),
    }
    return Features(columns).arrow_schema
