"""Visual Genome as it is downloaded: `relationships.json`, `image_data.json`, `objects.json`.

`image_data.json` lists `{"image_id", "width", "height", …}`. `relationships.json` lists
`{"image_id", "relationships": [{"predicate", "subject": OBJECT, "object": OBJECT, …}]}`, and
`objects.json`, which may be missing, `{"image_id", "objects": [OBJECT]}` with the objects that no
relationship names, in the same order. OBJECT is `{"object_id", "x", "y", "w", "h"}` with `name` or
a list `names`, and `merged_object_ids` in some releases.

`scene_graphs.json` lists both together: `{"image_id", "objects": [OBJECT], "relationships":
[{"predicate", "subject_id", "object_id", …}]}`.
(Krishna et al. 2017, arXiv 1602.07332; https://homes.cs.washington.edu/~ranjay/visualgenome/)
"""

from collections.abc import Iterator
from itertools import repeat
from pathlib import Path
from typing import Any

from scene_data.conversion.raw import (
    RawImage,
    RawObject,
    RawRelationship,
    Tally,
    image_id_of,
    member,
    size_of,
)
from scene_data.json_stream import stream_items
from scene_data.layouts import TITLES
from scene_data.refusal import refusal
from scene_data.rows import RowError, read_box


class VisualGenome:
    """`relationships.json` with the files beside it, read side by side as streams.

    Without `image_data.json` sizes are those of the images.
    """

    title = TITLES["visual_genome"]

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path

    def images(self, tally: Tally) -> Iterator[RawImage]:
        """All images in the order of `relationships.json`; a split of its own there is none."""
        sizes = _Sizes(self._path.parent / "image_data.json", tally)
        for number, (record, listed) in enumerate(self._pairs()):
            try:
                image_id = image_id_of(record)
                if listed is not None and image_id_of(listed) != image_id:
                    raise refusal(
                        self._path,
                        f"it is image {image_id} here and {image_id_of(listed)} in objects.json",
                        "use files of one release",
                        row=f"item {number}",
                    )
                yield _image(image_id, sizes.of(image_id), record, listed, tally)
            except RowError as error:
                tally.note_broken(_place(self._path, number, record), error)

    def _pairs(self) -> Iterator[tuple[Any, Any]]:
        """Each image's relationships, and its objects or None."""
        related, objects = self._path, self._path.parent / "objects.json"
        if not objects.is_file():
            yield from zip(stream_items(related), repeat(None))
            return
        try:
            yield from zip(stream_items(related), stream_items(objects), strict=True)
        except ValueError as error:
            raise refusal(
                related,
                f"it and {objects} are about different numbers of images",
                "use files of one release",
            ) from error


class SceneGraphs:
    """`scene_graphs.json`, read as a stream; `image_data.json` beside it may be missing."""

    title = TITLES["scene_graphs"]

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path

    def images(self, tally: Tally) -> Iterator[RawImage]:
        """All images; a split of its own there is none."""
        sizes = _Sizes(self._path.parent / "image_data.json", tally)
        for number, record in enumerate(stream_items(self._path)):
            try:
                image_id = image_id_of(record)
                yield _scene_graph(image_id, sizes.of(image_id), record, tally)
            except RowError as error:
                tally.note_broken(_place(self._path, number, record), error)


class _Sizes:
    """Widths and heights in `image_data.json`."""

    def __init__(self, path: Path, tally: Tally) -> None:
        self._path = path
        self._sizes: dict[str, tuple[int, int]] = {}
        for number, item in enumerate(stream_items(path) if path.is_file() else ()):
            try:
                self._sizes[image_id_of(item)] = size_of(item)
            except RowError as error:
                tally.note_broken(f"item {number} of {path.name}", error)

    def of(self, image_id: str) -> tuple[int, int] | None:
        """The size of an image; None where there is no such file.

        Raises:
            RowError: The file does not have the image.
        """
        if self._path.is_file() and image_id not in self._sizes:
            raise RowError(f"not in {self._path.name}")
        return self._sizes.get(image_id)


def _place(path: Path, number: int, record: Any) -> str:
    name = record.get("image_id") if isinstance(record, dict) else None
    return f"item {number} of {path.name} (image {name})"


def _scene_graph(
    image_id: str, size: tuple[int, int] | None, record: Any, tally: Tally
) -> RawImage:
    objects: dict[Any, RawObject] = {}
    for item in member(record, "objects", list):
        if (found := _object(item, tally)) is not None:
            tally.dropped.update(["repeated_object"] if found.key in objects else [])
            objects.setdefault(found.key, found)
    relationships = []
    for item in member(record, "relationships", list):
        keys = ("subject_id", "predicate", "object_id")
        subject, predicate, object_ = (
            item.get(key) if isinstance(item, dict) else None for key in keys
        )
        if type(subject) is int and type(object_) is int and isinstance(predicate, str):
            names = (predicate.lower(),)
            relationships.append(RawRelationship(subject=subject, names=names, object=object_))
        else:
            tally.dropped["malformed_relationship"] += 1
    return RawImage(
        image_id=image_id,
        image=f"{image_id}.jpg",
        size=size,
        split="train",
        objects=list(objects.values()),
        relationships=relationships,
    )


def _image(
    image_id: str, size: tuple[int, int] | None, record: Any, listed: Any, tally: Tally
) -> RawImage:
    objects: dict[Any, RawObject] = {}
    merged: dict[Any, Any] = {}
    for item in member(listed, "objects", list) if listed is not None else ():
        if (found := _object(item, tally)) is not None:
            objects.setdefault(found.key, found)
            ids = item.get("merged_object_ids")
            others = [key for key in ids if isinstance(key, int)] if isinstance(ids, list) else []
            merged.update(dict.fromkeys(others, found.key))
    relationships = []
    for item in member(record, "relationships", list):
        ends = [_end(item, side, objects, merged, tally) for side in ("subject", "object")]
        predicate = item.get("predicate") if isinstance(item, dict) else None
        if None in ends or not isinstance(predicate, str):
            tally.dropped["malformed_relationship"] += 1
            continue
        relationships.append(
            RawRelationship(subject=ends[0], names=(predicate.lower(),), object=ends[1])
        )
    return RawImage(
        image_id=image_id,
        image=f"{image_id}.jpg",
        size=size,
        split="train",
        objects=list(objects.values()),
        relationships=relationships,
    )


def _end(
    item: Any, side: str, objects: dict[Any, RawObject], merged: dict[Any, Any], tally: Tally
) -> Any:
    """The key of a relationship's end, which joins the objects; None where it is malformed."""
    end = item.get(side) if isinstance(item, dict) else None
    key = end.get("object_id") if isinstance(end, dict) else None
    if isinstance(key, int) and key in merged:
        return merged[key]
    if (found := _object(end, tally)) is None:
        return None
    objects.setdefault(found.key, found)
    return found.key


def _object(item: Any, tally: Tally) -> RawObject | None:
    if isinstance(item, dict) and isinstance(item.get("object_id"), int):
        names: Any = item.get("names") or [item.get("name")]
        box = read_box([item.get(side) for side in ("x", "y", "w", "h")])
        if (
            isinstance(names, list)
            and all(isinstance(name, str) for name in names)
            and box is not None
        ):
            x, y, w, h = box
            names = tuple(name.lower() for name in names)
            return RawObject(key=item["object_id"], names=names, bbox=(x, y, x + w, y + h))
    tally.dropped["malformed_object"] += 1
    return None
