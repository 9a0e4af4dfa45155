"""`sgg-rl data convert`: annotations and images of any known layout to files of rows."""

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from scene_data.conversion.graphs import GraphRules
from scene_data.conversion.raw import RawImage, Source, Tally
from scene_data.conversion.rows_source import DatasetRows
from scene_data.dataset import is_too_broken
from scene_data.reading.images import check_image, find_image, image_bytes
from scene_data.reading.layouts import raw_layouts
from scene_data.reading.refusal import PAGE, refusal
from scene_data.reading.rows import RowError
from scene_data.writing import WriteRow, graph_row, jsonl_writer, parquet_writer
from services.errors import InvalidInputError

_SURE_AFTER = 10_000
"""Images: before so many are seen, the share of broken ones is taken of this number."""

_HINTS = {
    "its image is in none of the folders": "name their folder with --images, or write annotations "
    "alone with --no-images",
    "no relationship left": "--keep-unrelated keeps images without relationships",
}
"""What to do, by reason"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionOptions:
    """What is kept, and where it goes."""

    folder: Path
    """Gets one file a split: `train.parquet`."""
    image_folders: tuple[Path, ...] = ()
    """Where the files are that raw annotations name."""
    with_images: bool = True
    """False writes annotations alone, as JSON lines."""
    splits: dict[str, str] | None = None
    """Split by image id, in place of the source's own; images that are not in it are left out."""
    keep_unrelated: bool = False
    """Keep images without any relationship: they are of use for detection alone."""


@dataclass(slots=True, kw_only=True)
class WrittenFile:
    """A file of rows."""

    path: Path
    num_images: int = 0
    num_objects: int = 0
    num_relationships: int = 0


@dataclass(slots=True)
class Conversion:
    """What a conversion did."""

    tally: Tally = field(default_factory=Tally)
    files: dict[str, WrittenFile] = field(default_factory=dict)
    """By split"""

    @property
    def num_seen(self) -> int:
        """Images so far: written, left out or broken."""
        num_written = sum(file.num_images for file in self.files.values())
        return num_written + self.tally.left_out.total() + self.tally.num_broken


def open_source(name: str, *, vocabulary: str | None, need_images: bool) -> Source:
    """Recognise a layout by what is in the files: `docs/data.md` lists them.

    Args:
        name: A file, a folder, or a hub name.
        vocabulary: Rows may come with names of it.
        need_images: Leave out rows without an image.

    Raises:
        InvalidInputError: It is none of the layouts, or more than one.
    """
    found = raw_layouts(Path(name))
    if len(found) > 1:
        listed = ", ".join(file.name for file in found)
        raise refusal(name, f"annotations in several files ({listed})", "name one of them")
    for file, layout in found.items():
        module, _, reader = layout.reader.partition(".")
        source: Source = getattr(import_module(f"scene_data.conversion.{module}"), reader)(file)
        return source
    return DatasetRows(name, vocabulary, need_images=need_images)


def convert(
    source: Source,
    rules: GraphRules,
    options: ConversionOptions,
    on_image: Callable[[], object] = lambda: None,
) -> Conversion:
    """Write the files, one image at a time.

    Args:
        source: From `open_source`.
        rules: Which names are kept.
        options: Everything else.
        on_image: Called after each image.

    Raises:
        InvalidInputError: Too much is broken, nothing is left, or a file is there already; no file
            is left behind.
    """
    done, seen = Conversion(), set[str]()
    with ExitStack() as stack:
        writers: dict[str, WriteRow] = {}
        for raw in source.images(done.tally):
            try:
                if raw.image_id in seen:
                    raise RowError("image_id comes twice")
                seen.add(raw.image_id)
                split = _split(raw, options, done.tally.left_out)
                row = split and _row(raw, rules, options, done.tally)
            except RowError as error:
                done.tally.note_broken(f"image {raw.image_id}", error)
                row = None
            if row and split:
                if split not in writers:
                    writers[split] = stack.enter_context(_open_file(split, options, done))
                writers[split](row)
                _count(done.files[split], row)
            _check_broken(source, done, at_least=_SURE_AFTER)
            on_image()
        _check_broken(source, done)
        if not done.files:
            raise _refusal(source, done, f"no image is left to write{_ids(seen, options)}")
    return done


def _split(raw: RawImage, options: ConversionOptions, left_out: Counter[str]) -> str | None:
    if options.splits is None:
        return raw.split
    split = options.splits.get(raw.image_id)
    if split is None:
        left_out["in no list of image ids"] += 1
    return split


def _row(
    raw: RawImage, rules: GraphRules, options: ConversionOptions, tally: Tally
) -> dict[str, Any] | None:
    data, size = _image(raw, options)
    graph = rules.graph(raw.in_pixels(size), size, tally.dropped)
    if not graph.objects:
        tally.left_out["no object left"] += 1
        return None
    if not graph.relationships and not options.keep_unrelated:
        tally.left_out["no relationship left"] += 1
        return None
    name = Path(raw.image).name if isinstance(raw.image, str) else f"{raw.image_id}.jpg"
    return graph_row(raw.image_id, data, name, size, graph)


def _image(raw: RawImage, options: ConversionOptions) -> tuple[bytes | None, tuple[int, int]]:
    """The encoded image, where it is wanted, and its size.

    Raises:
        RowError: It is missing, would be refused, or has another size than its annotations say.
    """
    if not options.with_images and raw.size:
        return None, raw.size
    if raw.image is None:
        raise RowError("no image, and no width and height either" if not raw.size else "no image")
    image = raw.image
    if isinstance(image, str):
        image = find_image(image, options.image_folders)
    data = image_bytes(image)
    size = check_image(data, raw.size, all_pixels=True).size
    return data if options.with_images else None, size


def _open_file(
    split: str, options: ConversionOptions, done: Conversion
) -> AbstractContextManager[WriteRow]:
    path = options.folder / f"{split}.{'parquet' if options.with_images else 'jsonl'}"
    if path.exists():
        raise InvalidInputError(f"{path} is there already: remove it, or name another --output")
    path.parent.mkdir(parents=True, exist_ok=True)
    done.files[split] = WrittenFile(path=path)
    return parquet_writer(path) if options.with_images else jsonl_writer(path)


def _count(file: WrittenFile, row: dict[str, Any]) -> None:
    file.num_images += 1
    file.num_objects += len(row["objects"])
    file.num_relationships += len(row["relationships"])


def _ids(seen: set[str], options: ConversionOptions) -> str:
    """Ids of both sides, where the lists of ids have none of the source's."""
    if not options.splits or not seen or seen & options.splits.keys():
        return ""
    return f" (the source has image {min(seen)!r}, the lists {min(options.splits)!r})"


def _check_broken(source: Source, done: Conversion, at_least: int = 0) -> None:
    num_broken = done.tally.num_broken
    if is_too_broken(num_broken, max(done.num_seen, at_least)):
        raise _refusal(source, done, "too many broken images")


def _refusal(source: Source, done: Conversion, what: str) -> InvalidInputError:
    tally = done.tally
    counts = [
        f"{number} x {reason}"
        for reason, number in [*tally.reasons.most_common(), *tally.left_out.most_common()]
    ]
    listed = "".join(f"\n  {line}" for line in tally.broken[:5])
    hints = [hint for reason, hint in _HINTS.items() if reason in {*tally.reasons, *tally.left_out}]
    return InvalidInputError(
        f"{source.name}: {what}: of {done.num_seen} images: "
        f"{', '.join(counts) or 'nothing in the source'} ({'; '.join([*hints, PAGE])}){listed}"
    )
