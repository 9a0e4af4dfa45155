"""Rows of parquet files, read where they lie."""

import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import chain
from pathlib import Path
from threading import Lock, get_ident
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scene_data.reading.kept import kept_folder
from scene_data.reading.refusal import refusal
from scene_data.reading.rows import RowError
from services.errors import InvalidInputError
from services.host.environment import environment_value

logger = logging.getLogger(__name__)

_ROWS_AT_ONCE = 1000
_GROUPS_AT_HAND = 2
_BUFFER = 1 << 20


class ParquetFiles:
    """The parquet files of a split as one table.

    Parquet gives no single row, only the row group that it is in. So a row group is unpacked into a
    file of its own when one of its rows is first wanted, and that file is memory-mapped from then
    on, by all processes of the host. Nothing is copied when a dataset is opened.

    Args:
        files: In their order.

    Raises:
        InvalidInputError: One cannot be read, or has other columns than the first.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._paths = files
        self._files = [_opened(file) for file in files]
        self._schema = self._files[0].schema_arrow
        for path, file in zip(files, self._files, strict=True):
            _check_alike(path, file.schema_arrow, files[0], self._schema)
        self._leaves = [_text_leaves(file) for file in self._files]
        self._groups = [
            (place, number)
            for place, file in enumerate(self._files)
            for number in range(file.metadata.num_row_groups)
        ]
        sizes = [
            self._files[place].metadata.row_group(number).num_rows for place, number in self._groups
        ]
        self._starts = np.cumsum([0, *sizes], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def head(self) -> Any:
        """All columns of the first row, as an Arrow table; without a row where there is none."""
        import pyarrow as pa

        with _readable(self._paths[0]):
            first = next(self._files[0].iter_batches(1), None)
        return pa.Table.from_batches([first] if first is not None else [], self._schema)

    def group_of(self, index: int) -> tuple[int, int]:
        """The row group of a row, and its place there."""
        group = int(np.searchsorted(self._starts, index, side="right")) - 1
        return group, index - int(self._starts[group])

    def group(self, group: int, columns: Sequence[str]) -> Any:
        """All rows of a row group, as an Arrow table.

        Raises:
            InvalidInputError: They cannot be read.
        """
        place, number = self._groups[group]
        file = self._files[place]
        with _readable(self._paths[place]):
            found = file.read_row_group(number, columns=list(columns), use_threads=False)
            return self._alike(found, columns)

    def batches(
        self, columns: Sequence[str], indexes: NDArray[np.int64] | None = None
    ) -> Iterator[Any]:
        """Some columns of all rows in their order, or of these, which are sorted, in batches.

        Raises:
            InvalidInputError: They cannot be read.
        """
        if indexes is None:
            for group in range(len(self._groups)):
                yield from self.group_batches(group, columns)
            return
        groups = np.searchsorted(self._starts, indexes, side="right") - 1
        for group in np.unique(groups).tolist():
            start = int(self._starts[group])
            wanted = indexes[groups == group] - start
            for batch in self.group_batches(group, columns):
                yield batch.take(wanted[wanted < len(batch)])
                wanted = wanted[wanted >= len(batch)] - len(batch)

    def empty(self, column: str) -> NDArray[np.bool_]:
        """[rows] as `is_empty`."""
        found = np.zeros(len(self), dtype=bool)
        for group, start in enumerate(self._starts[:-1].tolist()):
            if self._may_be_empty(group, column):
                for batch in self.group_batches(group, [column]):
                    found[start : start + len(batch)] = is_empty(batch.column(0))
                    start += len(batch)
        return found

    def _may_be_empty(self, group: int, column: str) -> bool:
        """False where the file says that the least text of a row group is more than `[]`."""
        place, number = self._groups[group]
        leaf = self._leaves[place].get(column)
        if leaf is None:
            return True
        least = self._files[place].metadata.row_group(number).column(leaf).statistics
        is_known = least is not None and least.has_min_max and least.has_null_count
        return not is_known or least.null_count > 0 or least.min <= "[]"

    def group_batches(self, group: int, columns: Sequence[str]) -> Iterator[Any]:
        """A row group in Arrow tables: in one where it is small, which is ten times as fast.

        Raises:
            InvalidInputError: They cannot be read.
        """
        if self._starts[group + 1] - self._starts[group] <= _ROWS_AT_ONCE:
            yield self.group(group, columns)
            return
        place, number = self._groups[group]
        import pyarrow as pa

        with _readable(self._paths[place]):
            for batch in self._files[place].iter_batches(
                _ROWS_AT_ONCE, row_groups=[number], columns=list(columns), use_threads=False
            ):
                yield self._alike(pa.Table.from_batches([batch]), columns)

    def _alike(self, table: Any, columns: Sequence[str]) -> Any:
        """Give a table the types of the first file."""
        import pyarrow as pa

        wanted = pa.schema([self._schema.field(column) for column in columns])
        table = table.select(list(columns))
        return table if table.schema.equals(wanted) else table.cast(wanted)


class ParquetRows:
    """Rows of parquet files.

    Args:
        files: Where they are.
        columns: That are wanted of each.
        state: What the files are known by. None: they may be changing, and nothing is kept of them.
    """

    def __init__(self, files: ParquetFiles, columns: Sequence[str], state: str | None) -> None:
        self._files, self._columns, self.state = files, columns, state
        self._folder = _folder(state, columns) if state else None
        self._lock = Lock()
        self._at_hand = lru_cache(_GROUPS_AT_HAND)(self._unpacked)

    def __len__(self) -> int:
        return len(self._files)

    def batches(
        self, columns: Sequence[str], indexes: NDArray[np.int64] | None = None
    ) -> Iterator[Any]:
        """As `ParquetFiles.batches`."""
        return self._files.batches(columns, indexes)

    def empty(self, column: str) -> NDArray[np.bool_]:
        """As `ParquetFiles.empty`."""
        return self._files.empty(column)

    def row(self, index: int) -> dict[str, Any]:
        """A row; from any thread.

        Raises:
            RowError: It cannot be read.
        """
        group, place = self._files.group_of(index)
        try:
            with self._lock:  # one row group at a time is in memory
                table = self._at_hand(group)
        except InvalidInputError as error:
            raise RowError(error.message, "not readable parquet") from error
        found: dict[str, Any] = table.slice(place, 1).to_pylist()[0]
        return found

    def _unpacked(self, group: int) -> Any:
        if self._folder is None:
            return self._files.group(group, self._columns)
        file = self._folder / f"{group}.arrow"
        if (found := _mapped(file)) is not None:
            return found
        try:
            _write(file, self._files.group_batches(group, self._columns))
        except OSError as error:
            logger.warning("rows are not unpacked into %s: %s", file.parent, error)
            self._folder = None  # it takes longer from here on, and works
        found = _mapped(file) if self._folder else None
        return self._files.group(group, self._columns) if found is None else found


def is_empty(column: Any) -> NDArray[np.bool_]:
    """Which cells of an Arrow column are null, a list of nothing, or the text `[]`."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    if pa.types.is_struct(kind) and kind.num_fields:  # an object of lists
        return is_empty(pc.struct_field(column, 0))
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        lengths, none = pc.binary_length(column), len("[]")
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        lengths, none = pc.list_value_length(column), 0
    else:
        return np.zeros(len(column), dtype=bool)
    return np.asarray(pc.fill_null(pc.less_equal(lengths, none), True), dtype=bool)


def _opened(path: Path) -> Any:
    import pyarrow.parquet as pq

    with _readable(path):
        # Not mapped: a file that is cut off would end this process. Buffered: else a large row
        # group is in memory while a part of it is read.
        return pq.ParquetFile(path, buffer_size=_BUFFER)


def _check_alike(path: Path, schema: Any, first: Path, wanted: Any) -> None:
    """Columns may have another order, and types that become those of the first file."""
    import pyarrow as pa

    try:
        if sorted(schema.names) == sorted(wanted.names):
            schema.empty_table().select(wanted.names).cast(wanted)
            return
        found = f"its columns are {', '.join(schema.names)}, not those of {first.name}"
    except pa.ArrowException as error:
        found = f"its columns are not those of {first.name} ({error})"
    raise refusal(path, found, "write the files of a split alike")


def _text_leaves(file: Any) -> dict[str, int]:
    """The numbers of columns of text, by name."""
    columns = enumerate(file.schema)
    return {column.path: leaf for leaf, column in columns if column.logical_type.type == "STRING"}


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Name the file that cannot be read."""
    import pyarrow as pa

    try:
        yield
    except (OSError, ValueError, pa.ArrowException) as error:
        cause = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise refusal(path, f"not readable parquet ({cause})", "write it again") from error


def _folder(state: str, columns: Sequence[str]) -> Path:
    key = hashlib.sha256("\0".join((state, *columns)).encode()).hexdigest()
    large_files = environment_value("HF_DATASETS_CACHE")  # may be on another disk
    return (Path(large_files) / "sgg-rl" if large_files else kept_folder() / "rows") / key


def _mapped(file: Path) -> Any | None:
    """The table of a file; None where there is none, or one that was cut off."""
    import pyarrow as pa

    try:
        with pa.memory_map(str(file)) as source:
            return pa.ipc.open_file(source).read_all()
    except FileNotFoundError:
        return None
    except (OSError, pa.ArrowException) as error:
        logger.warning("%s cannot be read, and is made again: %s", file, error)
        return None


def _write(file: Path, tables: Iterator[Any]) -> None:
    """Whole or not at all."""
    import pyarrow as pa

    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_suffix(f".draft-{os.getpid()}-{get_ident()}")
    try:
        first = next(tables)
        with pa.OSFile(str(draft), "wb") as sink, pa.ipc.new_file(sink, first.schema) as writer:
            for table in chain([first], tables):
                writer.write_table(table)
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)
