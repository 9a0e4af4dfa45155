"""Images with their scene graphs, from any of the layouts in `docs/data.md`, read when asked for.

| `open_dataset` of | is read as |
|---|---|
| a `.parquet` file, or a folder of one split's parquet files | Hugging Face rows |
| a folder written by `datasets`' `save_to_disk` | the same |
| a `.jsonl` or `.json` file, or a folder with exactly one | rows; `image` is a path beside it |
| `owner/name` or `owner/name:split`, where no such path exists | the same, from the hub |

A row has image_id, image, objects `[{"id": "man.1", "bbox": [x1, y1, x2, y2]}]` (pixels) and
relationships `[{"subject", "predicate", "object"}]`; the lists may be JSON strings, or objects of
lists. A chat with `images` is a row too (`scene_data.reading.chats`). A column of text that leads
to the graph (thinking) is read where it is asked for.
"""

import hashlib
import json
import logging
import operator
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import SupportsIndex, overload

import numpy as np
from numpy.typing import NDArray
from pydantic_core import to_json

from scene_data.reading.images import check_image, image_bytes
from scene_data.reading.kept import Arrays, kept
from scene_data.reading.refusal import PAGE, refusal
from scene_data.reading.rows import RowError, image_id_text, read_graph, read_size, read_thinking
from scene_data.reading.sources import Row, Rows, open_rows
from scene_graph.cleaning import Task
from scene_graph.graph import SceneGraph
from services.errors import InvalidInputError
from services.images import decode_image
from services.printable import printable

logger = logging.getLogger(__name__)

MAX_BROKEN_ROWS = 5
"""Broken rows that any dataset may have."""
MAX_BROKEN_SHARE = 0.01
"""Share of broken rows that a large one may have."""
NUM_LISTED = 20
MAX_READ = 10_000
"""Rows that are read when a dataset is opened; of a larger one so many, spread over it."""
_NEIGHBOURS = 20


class UnusableRowError(InvalidInputError):
    """A row's annotations cannot be used, which shows when it is used: it was not read before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One image and what it shows; in a notebook its picture.

    Example:
        >>> sample = sgg_rl.load_dataset("toy/heldout.parquet")[0]
        >>> sample.width, sample.height, len(sample.graph.relationships)
        (112, 112, 2)
    """

    image_id: str
    image_bytes: bytes = field(repr=False)
    """The encoded file (PNG, JPEG), as it is in the dataset."""
    width: int
    """Pixels of the upright image."""
    height: int
    graph: SceneGraph
    """Boxes in pixels of this image."""
    thinking: str | None = None
    """Text before the answer, where the dataset was opened with a column for it."""

    def _repr_svg_(self) -> str:
        """A notebook shows the graph over its picture."""
        from scene_graph.drawing import draw_svg

        return draw_svg(self.graph, self.width, self.height, decode_image(self.image_bytes))


@dataclass(slots=True, kw_only=True)
class BrokenRows:
    """Rows or images that cannot be read: counted by kind of fault, the first ones listed."""

    reasons: Counter[str] = field(default_factory=Counter)
    """By kind of fault"""
    broken: list[str] = field(default_factory=list)
    """The first `NUM_LISTED` of them: place and reason"""
    dropped: Counter[str] = field(default_factory=Counter)
    """Parts of annotations by reason"""

    @property
    def num_broken(self) -> int:
        """How many there are."""
        return self.reasons.total()

    def note_broken(self, place: str, error: RowError) -> None:
        """Count one, and list it while the list is short."""
        self.reasons[error.kind] += 1
        if len(self.broken) < NUM_LISTED:
            self.broken.append(f"{place}: {error}")


@dataclass(slots=True, kw_only=True)
class RowCheck(BrokenRows):
    """What reading annotations of a source found."""

    usable: NDArray[np.bool_]
    """[rows]"""
    num_unrelated: int = 0
    """Rows without any relationship, which the task has no use for"""
    num_read: int = 0
    """Rows whose annotations were read: the others count as usable until they are used"""

    @classmethod
    def of_arrays(cls, arrays: Arrays) -> "RowCheck":
        """What `as_arrays` gave."""
        counted = json.loads(arrays["counted"].tobytes())
        return cls(
            usable=arrays["usable"],
            reasons=Counter(counted["reasons"]),
            broken=counted["broken"],
            dropped=Counter(counted["dropped"]),
            num_unrelated=counted["num_unrelated"],
            num_read=counted["num_read"],
        )

    def as_arrays(self) -> Arrays:
        """All of it, to be kept."""
        names = ("reasons", "broken", "dropped", "num_unrelated", "num_read")
        counted = json.dumps({name: getattr(self, name) for name in names}).encode()
        return {"usable": self.usable, "counted": np.frombuffer(counted, dtype=np.uint8)}

    def note_row(self, index: int, place: str, row: Row | RowError, error: RowError) -> None:
        """A row is broken: not usable, counted and listed."""
        self.usable[index] = False
        image_id = row.get("image_id") if isinstance(row, Mapping) else None
        self.note_broken(f"{place} (image {image_id})", error)


class SceneDataset:
    """The usable rows of a source.

    Opening reads all annotations, to know which rows are usable, and keeps one number a row. Of
    more than `MAX_READ` rows it reads so many, spread over the source, and leaves out those whose
    columns are empty; the others are read when they are used. Where more of them are broken than
    may be, it reads all. What that found is kept of a large source, as long as it is the same
    (`scene_data.reading.kept`).

    Args:
        rows: The source.
        name: For messages.
        thinking_column: A column with text that every usable row must have.
        task: What the rows are for; `sgg` and `cls` leave out rows without relationships.
        keep_repeated: Samples keep triplets that repeat another.
        annotated: False: a row may have no graph; its sample's is empty.
        need_images: False: a row that says its size may name no image; its sample has no bytes.
        usable: [rows] as `check.usable` of another process that has opened the same: nothing is
            read then.

    Raises:
        InvalidInputError: More than `max(MAX_BROKEN_ROWS, MAX_BROKEN_SHARE * rows)` rows are
            broken, or none is left; or `usable` is of another number of rows.
    """

    def __init__(
        self,
        rows: Rows,
        name: str,
        *,
        thinking_column: str | None = None,
        task: Task | None = None,
        keep_repeated: bool = False,
        annotated: bool = True,
        need_images: bool = True,
        usable: NDArray[np.bool_] | None = None,
    ) -> None:
        self._need_images = need_images
        self._rows = rows
        self._keep_repeated = keep_repeated
        self._annotated = annotated
        self.name = name
        self._thinking = thinking_column
        self._task = task
        self._has_warned = False
        self._how = f"{task} {thinking_column!r} {keep_repeated} {annotated}"
        if usable is not None:
            _check_same(len(rows), len(usable), name)
            self.check = RowCheck(usable=usable)
        else:
            found = kept(rows.state, f"check {self._how}", lambda: self._check_rows().as_arrays())
            self.check = RowCheck.of_arrays(found)
            _judge(self.check, name, task)
        self._usable = np.flatnonzero(self.check.usable)

    def __len__(self) -> int:
        return len(self._usable)

    def __repr__(self) -> str:
        return f"<SceneDataset {self.name!r}: {len(self)} rows>"

    @overload
    def __getitem__(self, index: SupportsIndex) -> Sample: ...

    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...

    def __getitem__(self, index: SupportsIndex | slice) -> Sample | list[Sample]:
        """The sample of a usable row, or those of a slice.

        Raises:
            IndexError: There are not that many.
            InvalidInputError: The index is no number. Or the row's image is missing, would be
                refused by rollout servers and trainer for what its header says, or has another
                size than the row says.
            UnusableRowError: The row was not read when the dataset was opened, and is broken or of
                no use for the task.
        """
        if isinstance(index, slice):
            return [self._sample(number) for number in range(len(self))[index]]
        if not isinstance(index, SupportsIndex):
            raise InvalidInputError(
                f"{self.name}: a sample has a number, from 0 to {len(self) - 1}, and not {index!r}"
            )
        if not -len(self) <= (number := operator.index(index)) < len(self):
            last = len(self) - 1
            raise IndexError(printable(f"{self.name}: samples are 0 to {last}: none is {index!r}"))
        return self._sample(number)

    def _sample(self, index: int) -> Sample:
        number = int(self._usable[index])
        place = self.place(index)
        try:
            row = self._rows.row(number)
            image_id = image_id_text(row.get("image_id"))
            place += f" (image {image_id})" * (not place.endswith(image_id))
            graph, _ = self._graph(row)
            if self._is_unrelated(graph):
                raise RowError(f"no relationship, and {self._task} needs one")
        except RowError as error:
            raise UnusableRowError(f"{place}: {error} ({PAGE})") from error
        try:
            data, (width, height) = self._picture(row, place)
        except RowError as error:
            raise InvalidInputError(f"{place}: {error} ({PAGE})") from error
        return Sample(
            image_id=image_id,
            image_bytes=data,
            width=width,
            height=height,
            graph=graph,
            thinking=read_thinking(row, self._thinking) if self._thinking else None,
        )

    def _picture(self, row: Row, place: str) -> tuple[bytes, tuple[int, int]]:
        """A row's encoded image with its width and height."""
        said = read_size(row)
        if not self._need_images and not row["image"]:
            if said is None:
                raise RowError("width and height are missing, and no image is named to read them")
            return b"", said
        data = image_bytes(row["image"])
        header = check_image(data, said)
        if header.orientation > 1 and self._annotated:
            self._warn_of_turn(place)
        return data, header.size

    def _check_rows(self) -> RowCheck:
        """Which rows are usable, as far as annotations show it; images are not looked at."""
        if len(self._rows) > MAX_READ and (found := self._check_some()) is not None:
            return found
        found = RowCheck(usable=np.ones(len(self._rows), dtype=bool))
        self._read_rows(found)
        return found

    def _check_some(self) -> RowCheck | None:
        """As far as some rows and empty columns show it; None where too many are broken."""
        num_rows = len(self._rows)
        found = RowCheck(usable=np.ones(num_rows, dtype=bool))
        self._read_rows(found, _spread(num_rows))
        if is_too_broken(found.num_broken, found.num_read):
            return None
        if self._needs_relationship:
            unrelated = found.usable & self._rows.empty("relationships")
            found.num_unrelated += int(np.count_nonzero(unrelated))
            found.usable &= ~unrelated
        if self._annotated:
            empty = np.flatnonzero(found.usable & self._rows.empty("objects"))
            if is_too_broken(found.num_broken + len(empty), num_rows):
                return None
            self._read_rows(found, empty)
        return found

    def _read_rows(self, found: RowCheck, indexes: NDArray[np.int64] | None = None) -> None:
        """Read the annotations of these rows, or of all."""
        numbers = range(len(self._rows)) if indexes is None else indexes.tolist()
        for index, row in zip(numbers, self._rows.annotations(indexes), strict=True):
            found.num_read += 1
            try:
                graph, dropped = self._graph(row)
            except RowError as error:
                found.note_row(index, self._rows.place(index), row, error)
                continue
            found.dropped.update(dropped)
            if self._is_unrelated(graph):
                found.usable[index] = False
                found.num_unrelated += 1

    @property
    def _needs_relationship(self) -> bool:
        return self._task in ("sgg", "cls")

    def _is_unrelated(self, graph: SceneGraph) -> bool:
        """Whether the task has no use for it."""
        return self._needs_relationship and not graph.relationships

    def _graph(self, row: Row | RowError) -> tuple[SceneGraph, Counter[str]]:
        if isinstance(row, RowError):
            raise row
        if self._thinking:
            read_thinking(row, self._thinking)
        return read_graph(row, keep_repeated=self._keep_repeated, annotated=self._annotated)

    def _warn_of_turn(self, place: str) -> None:
        """Once: nothing else may show that the boxes are of the picture as it is stored."""
        if not self._has_warned:
            self._has_warned = True
            logger.warning(
                "%s: turned upright by its EXIF orientation, as all such images are: boxes must be "
                "of the upright picture (docs/data.md)",
                place,
            )

    def digest(self) -> str:
        """SHA-256 over the annotations of all usable rows, in their order; images do not count.

        It reads all annotations once more; of a large source it is kept.
        """
        found = kept(self._rows.state, f"digest {self._how}", lambda: {"sha256": self._digest()})
        return found["sha256"].tobytes().hex()

    def _digest(self) -> NDArray[np.uint8]:
        found = hashlib.sha256()
        usable = iter(self._usable)
        number = next(usable, None)
        for index, row in enumerate(self._rows.annotations()):
            if index != number:
                continue
            number = next(usable, None)
            if not isinstance(row, RowError):
                # A path of an image is of this machine.
                kept = {key: value for key, value in row.items() if key != "image"}
                found.update(to_json(kept, inf_nan_mode="constants", fallback=repr) + b"\n")
        return np.frombuffer(found.digest(), dtype=np.uint8)

    def place(self, index: int) -> str:
        """What a person finds a usable row by. Example: `train.jsonl, line 4`."""
        return ", ".join(filter(None, (self.name, self._rows.place(int(self._usable[index])))))

    def image_id(self, index: int) -> str:
        """The id of a usable row, also where its image is not usable."""
        try:
            return image_id_text(self._rows.row(int(self._usable[index])).get("image_id"))
        except RowError:
            return f"row {index}"

    def image_bytes(self, index: int) -> bytes | None:
        """The encoded file of a usable row, whatever it holds; None where it cannot be read."""
        try:
            return image_bytes(self._rows.row(int(self._usable[index])).get("image"))
        except RowError:
            return None

    def __iter__(self) -> Iterator[Sample]:
        """All samples; a row that turns out to be unusable is left out and named in the log."""
        for index in range(len(self)):
            try:
                sample = self[index]
            except UnusableRowError as error:
                logger.warning("left out: %s", error.message)
                continue
            yield sample


def open_dataset(
    path: str | Path,
    *,
    thinking_column: str | None = None,
    task: Task | None = None,
    annotated: bool = True,
    usable: NDArray[np.bool_] | None = None,
) -> SceneDataset:
    """Open a local path or a hub dataset; see the table above.

    Args:
        path: Or a hub name.
        thinking_column: Read this text with each row.
        task: `sgg` and `cls` leave out rows without any relationship; `det` and None keep them.
        annotated: False: rows may have no graph, and pictures, a list or a folder of them, are rows
            too.
        usable: As `SceneDataset`.

    Raises:
        InvalidInputError: Nothing has that name, its layout is unknown, or too much is broken.
    """
    columns = [thinking_column] if thinking_column else []
    rows = open_rows(str(path), columns, need_graphs=annotated)
    return SceneDataset(
        rows,
        str(path),
        thinking_column=thinking_column,
        task=task,
        annotated=annotated,
        usable=usable,
    )


def _spread(num_rows: int) -> NDArray[np.int64]:
    """`MAX_READ` of the rows: neighbours cost one read, so `_NEIGHBOURS` in each of many places."""
    starts = np.linspace(0, num_rows - _NEIGHBOURS, MAX_READ // _NEIGHBOURS).astype(np.int64)
    spread: NDArray[np.int64] = np.add.outer(starts, np.arange(_NEIGHBOURS)).ravel()
    return spread


def is_too_broken(num_broken: int, num_rows: int) -> bool:
    """Whether there are more broken rows than a dataset may have."""
    return num_broken > max(MAX_BROKEN_ROWS, MAX_BROKEN_SHARE * num_rows)


def _check_same(num_here: int, num_there: int, name: str) -> None:
    if num_here != num_there:
        raise InvalidInputError(
            f"{name} has {num_here} rows here, and {num_there} where the run's first process is: "
            "every host must have the same dataset"
        )


def _judge(found: RowCheck, name: str, task: Task | None) -> None:
    """Say what was found, or refuse the dataset."""
    num_rows, num_usable = len(found.usable), int(np.count_nonzero(found.usable))
    if not num_rows:
        raise refusal(name, "no row in it", "rows are wanted")
    unrelated = f"{found.num_unrelated} of {num_rows} rows have no relationship"
    listed = "\n".join(f"  {line}" for line in found.broken)
    if is_too_broken(found.num_broken, num_rows) or not num_usable:
        also = f"; {unrelated}, which {task} needs" if found.num_unrelated else ""
        raise InvalidInputError(
            f"{name}: {found.num_broken} of {num_rows} rows are broken, {num_usable} usable{also}:"
            f"\n{listed}\n`sgg-rl data inspect` counts all faults; {PAGE} shows what a row is"
        )
    some = ""
    if found.num_read < num_rows:
        some = f" in the {found.num_read} rows that were read"
        logger.info("%s: read %d of %d rows", name, found.num_read, num_rows)
    if found.num_broken:
        logger.warning("%s: skipped %d of %d rows:\n%s", name, found.num_broken, num_rows, listed)
    if found.num_unrelated:
        logger.warning("%s: %s and are left out: %s needs one", name, unrelated, task)
    if found.dropped:
        logger.warning("%s: dropped parts of annotations%s: %s", name, some, dict(found.dropped))
