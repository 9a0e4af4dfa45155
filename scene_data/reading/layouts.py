"""Annotations that have to be converted first, recognised by what is in the file.

`docs/data.md` shows each layout.
"""

import csv
from collections.abc import Iterator
from enum import Enum
from itertools import islice
from pathlib import Path
from typing import Any

from scene_data.reading.json_stream import member_kinds, stream_items, stream_members
from scene_data.reading.refusal import refusal
from services.errors import InvalidInputError


class Layout(Enum):
    """Each with what a person is told of it, and its reader's place in `scene_data.conversion`."""

    VG150 = ("VG150 in HDF5", "vg150.Vg150")
    VISUAL_GENOME = ("raw Visual Genome", "visual_genome.VisualGenome")
    SCENE_GRAPHS = ("Visual Genome's scene graphs", "visual_genome.SceneGraphs")
    PSG = ("PSG", "psg.Psg")
    COCO = ("COCO with relations", "coco.Coco")
    RELTR = ("RelTR's COCO with rel.json", "coco.RelTr")
    GQA = ("GQA's scene graphs", "gqa.Gqa")
    OPEN_IMAGES = ("Open Images as PySGG packs it", "open_images.OpenImages")
    OPEN_IMAGES_CSV = ("Open Images' relations", "open_images.OpenImagesCsv")

    def __init__(self, title: str, reader: str) -> None:
        self.title, self.reader = title, reader


_NUM_LOOKED_AT = 1000
"""Items of a list, of which one that is telling is looked for"""
_NUM_KEYS = 12
"""Members of an unknown object that are named"""
_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def raw_layout(file: Path) -> Layout | None:
    """The layout of a file of annotations; None for rows, and for what is unknown or broken."""
    if file.suffix in (".h5", ".hdf5"):
        return Layout.VG150
    try:
        if file.suffix == ".csv":
            has_relations = {"ImageID", "LabelName1"} <= set(next(csv_lines(file), []))
            return Layout.OPEN_IMAGES_CSV if has_relations else None
        return _json_layout(file) if file.suffix == ".json" else None
    except InvalidInputError:
        return None  # whose reader says what is wrong


def raw_layouts(place: Path) -> dict[Path, Layout]:
    """The annotations that a path names: a file, or those of a folder; none where it has rows."""
    files = sorted(place.glob("*")) if place.is_dir() else [place]
    found = {file: layout for file in files if file.is_file() and (layout := raw_layout(file))}
    if Layout.RELTR in found.values():  # which reads the COCO files beside it
        found = {file: layout for file, layout in found.items() if layout != Layout.COCO}
    return found


def named_split(file: Path) -> str:
    """The split that a file's name or folder speaks of: `train`, `val` or `test`; else `train`.

    Example: `named_split(Path("valid/_annotations.coco.json")) == "val"`
    """
    words = "".join(c if c.isalpha() else " " for c in file.stem).lower().split()
    found = (_SPLITS[word] for word in (*words, file.parent.name.lower()) if word in _SPLITS)
    return next(found, "train")


def unknown_json(file: Path) -> InvalidInputError:
    """The refusal of a JSON object that is none of the layouts."""
    keys = [name for name, _ in islice(member_kinds(file), _NUM_KEYS)]
    listed = ", ".join(keys) + (", …" if len(keys) == _NUM_KEYS else "")
    return refusal(
        file,
        f"an object with the members {listed or '(none)'}",
        f"a list of rows is wanted, or one of: {', '.join(layout.title for layout in Layout)}",
    )


def csv_lines(file: Path) -> Iterator[list[str]]:
    """Lines of a CSV file, with a byte order mark or without.

    Raises:
        InvalidInputError: It cannot be read.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            yield from csv.reader(opened)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise refusal(file, f"not readable as CSV ({error})", "save it as UTF-8") from error


def _json_layout(file: Path) -> Layout | None:
    with file.open("rb") as opened:
        start = opened.read(1024).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if start == b"[":
        items = islice(stream_items(file), _NUM_LOOKED_AT)
        found = next((layout for item in items if (layout := _of_item(item))), None)
        is_named = file.name == "relationships.json"
        return found or (Layout.VISUAL_GENOME if is_named else None)
    return _of_object(file) if start == b"{" else None


def _of_item(item: Any) -> Layout | None:
    if not isinstance(item, dict):
        return None
    if "img_fn" in item and "rel" in item:
        return Layout.OPEN_IMAGES
    relations, objects = (item.get(key) for key in ("relationships", "objects"))
    for relation in relations if isinstance(relations, list) else ():
        if isinstance(relation, dict) and isinstance(relation.get("subject"), dict):
            return Layout.VISUAL_GENOME
        if isinstance(relation, dict) and "subject_id" in relation:
            return Layout.SCENE_GRAPHS
    first = objects[0] if isinstance(objects, list) and objects else None
    is_graph = isinstance(relations, list) and isinstance(first, dict) and "object_id" in first
    return Layout.SCENE_GRAPHS if is_graph else None


def _of_object(file: Path) -> Layout | None:
    for number, (name, kind) in enumerate(member_kinds(file)):
        if name in ("thing_classes", "stuff_classes", "predicate_classes"):
            return Layout.PSG
        if name in ("images", "annotations", "rel_annotations") and kind == "[":
            return Layout.COCO
        if name in _SPLITS and kind == "{":
            return Layout.RELTR
        if number == 0 and kind == "{":
            _, first = next(stream_members(file))
            if isinstance(first.get("objects"), dict):
                return Layout.GQA
    return None
