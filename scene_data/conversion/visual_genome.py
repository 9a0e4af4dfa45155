"""Visual Genome as it is downloaded: `relationships.json`, `image_data.json`, `objects.json`.

`image_data.json` lists `{"image_id", "width", "height", …}`. `relationships.json` lists
`{"image_id", "relationships": [{"predicate", "subject": OBJECT, "object": OBJECT, …}]}`, and
`objects.json`, which may be missing, `{"image_id", "objects": [OBJECT]}` with the objects that no
relationship names, in the same order. OBJECT is `{"object_id", "x", "y", "w", "h"}` with `name` or
a list `names`, and `merged_object_ids` in some releases.
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
from scene_data.rows import RowError, read_box
from services.errors import InvalidInputError


class VisualGenome:
    """The files of a folder, read side by side as streams.

    Raises:
        InvalidInputError: `image_data.json` is not there.
    """

    title = "raw Visual Genome"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        if not (folder / "image_data.json").is_file():
            raise InvalidInputError(
                f"{folder} has no image_data.json: download it from visualgenome.org beside "
                "relationships.json"
            )

    def images(self, tally: Tally) -> Iterator[RawImage]:
        """All images in the order of `relationships.json`; a split of its own there is none."""
        sizes = _sizes(self._folder / "image_data.json", tally)
        for number, (record, listed) in enumerate(self._pairs()):
            try:
                image_id = image_id_of(record)
                if listed is not None and image_id_of(listed) != image_id:
                    raise InvalidInputError(
                        f"{self._folder}: item {number} is image {image_id} in relationships.json "
                        f"and {image_id_of(listed)} in objects.json: use files of one release"
                    )
                if image_id not in sizes:
                    raise RowError("not in image_data.json")
                yield _image(image_id, sizes[image_id], record, listed, tally)
            except RowError as error:
                name = record.get("image_id") if isinstance(record, dict) else None
                tally.note_broken(f"item {number} of relationships.json (image {name})", error)

    def _pairs(self) -> Iterator[tuple[Any, Any]]:
        """Each image's relationships, and its objects or None."""
        related, objects = (self._folder / name for name in ("relationships.json", "objects.json"))
        if not objects.is_file():
            yield from zip(stream_items(related), repeat(None))
            return
        try:
            yield from zip(stream_items(related), stream_items(objects), strict=True)
        except ValueError as error:
            raise InvalidInputError(
                f"{related} and {objects} are about different numbers of images: use files of one "
                "release"
            ) from error


def _sizes(path: Path, tally: Tally) -> dict[str, tuple[int, int]]:
    sizes: dict[str, tuple[int, int]] = {}
    for number, item in enumerate(stream_items(path)):
        try:
            sizes[image_id_of(item)] = size_of(item)
        except RowError as error:
            tally.note_broken(f"item {number} of image_data.json", error)
    return sizes


def _image(
    image_id: str, size: tuple[int, int], record: Any, listed: Any, tally: Tally
) -> RawImage:
    objects: dict[Any, RawObject] = {}
    merged: dict[Any, Any] = {}
    for item in member(listed, "objects", list) if listed is not None else ():
        if (found := _object(item, tally)) is not None:
            objects.setdefault(found.key, found)
            merged.update(dict.fromkeys(item.get("merged_object_ids") or (), found.key))
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
    if isinstance(end, dict) and (key := merged.get(end.get("object_id"))) is not None:
        return key
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
