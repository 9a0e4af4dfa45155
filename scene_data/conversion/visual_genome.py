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

from collections.abc import Callable, Iterator
from itertools import repeat
from pathlib import Path
from typing import Any

from scene_data.conversion.raw import FileSource, RawImage, RawObject, RawRelationship, Tally
from scene_data.conversion.records import (
    box_of_sides,
    image_id_of,
    member,
    placed,
    read_images,
    size_of,
)
from scene_data.reading.json_stream import stream_items
from scene_data.reading.layouts import Layout
from scene_data.reading.refusal import refusal
from scene_data.reading.rows import RowError

_Parts = tuple[dict[Any, RawObject], list[RawRelationship]]
"""Objects by id, and relationships"""


class VisualGenome(FileSource):
    """`relationships.json` with the files beside it, read side by side as streams.

    Without `image_data.json` sizes are those of the images.
    """

    title = Layout.VISUAL_GENOME.title

    def images(self, tally: Tally) -> Iterator[RawImage]:
        """All images in the order of `relationships.json`; a split of its own there is none."""
        size_of_image = _sizes(self._path, tally)

        def read(pair: tuple[Any, Any], place: str) -> RawImage:
            record, listed = pair
            image_id = image_id_of(record)
            if listed is not None and image_id_of(listed) != image_id:
                raise refusal(
                    self._path,
                    f"it is image {image_id} here and {image_id_of(listed)} in objects.json",
                    "use files of one release",
                    row=place.partition(" of ")[0],
                )
            size = size_of_image(image_id)
            return _raw_image(image_id, size, *_related(record, listed, tally))

        return read_images(self._pairs(), read, tally)

    def _pairs(self) -> Iterator[tuple[str, tuple[Any, Any]]]:
        """Each image's relationships, and its objects or None."""
        objects = self._path.parent / "objects.json"
        has_objects = objects.is_file()
        listed = stream_items(objects) if has_objects else repeat(None)
        try:
            for (place, record), beside in zip(_records(self._path), listed, strict=has_objects):
                yield place, (record, beside)
        except ValueError as error:
            found = f"it and {objects} are about different numbers of images"
            raise refusal(self._path, found, "use files of one release") from error


class SceneGraphs(FileSource):
    """`scene_graphs.json`, read as a stream; `image_data.json` beside it may be missing."""

    title = Layout.SCENE_GRAPHS.title

    def images(self, tally: Tally) -> Iterator[RawImage]:
        """All images; a split of its own there is none."""
        size_of_image = _sizes(self._path, tally)

        def read(record: Any, _: str) -> RawImage:
            image_id = image_id_of(record)
            size = size_of_image(image_id)
            return _raw_image(image_id, size, *_listed(record, tally))

        return read_images(_records(self._path), read, tally)


def _records(path: Path) -> Iterator[tuple[str, Any]]:
    return placed(stream_items(path), f"item {{}} of {path.name}")


def _sizes(path: Path, tally: Tally) -> Callable[[str], tuple[int, int] | None]:
    """Width and height by image id, from `image_data.json` beside a file.

    None where there is no such file; RowError where the file does not have the image.
    """
    file = path.parent / "image_data.json"
    sizes: dict[str, tuple[int, int]] = {}
    if not file.is_file():
        return sizes.get
    for number, item in enumerate(stream_items(file)):
        try:
            sizes[image_id_of(item)] = size_of(item)
        except RowError as error:
            tally.note_broken(f"item {number} of {file.name}", error)

    def size(image_id: str) -> tuple[int, int]:
        if image_id not in sizes:
            raise RowError(f"not in {file.name}")
        return sizes[image_id]

    return size


def _listed(record: Any, tally: Tally) -> _Parts:
    """What a record of `scene_graphs.json` has."""
    objects: dict[Any, RawObject] = {}
    for found in tally.kept(map(_object, member(record, "objects", list)), "malformed_object"):
        tally.dropped.update(["repeated_object"] if found.key in objects else [])
        objects.setdefault(found.key, found)
    edges = map(_listed_relationship, member(record, "relationships", list))
    return objects, tally.kept(edges, "malformed_relationship")


def _listed_relationship(item: Any) -> RawRelationship | None:
    keys = ("subject_id", "predicate", "object_id")
    subject, predicate, object_ = (
        item.get(key) if isinstance(item, dict) else None for key in keys
    )
    if type(subject) is int and type(object_) is int and isinstance(predicate, str):
        return RawRelationship(subject=subject, names=(predicate.lower(),), object=object_)
    return None


def _related(record: Any, listed: Any, tally: Tally) -> _Parts:
    """What a record of `relationships.json` has, with that of `objects.json` for the same image."""
    objects: dict[Any, RawObject] = {}
    merged: dict[Any, Any] = {}
    for item in member(listed, "objects", list) if listed is not None else ():
        for found in tally.kept([_object(item)], "malformed_object"):
            objects.setdefault(found.key, found)
            ids = item.get("merged_object_ids")
            others = [key for key in ids if isinstance(key, int)] if isinstance(ids, list) else []
            merged.update(dict.fromkeys(others, found.key))

    def relationship(item: Any) -> RawRelationship | None:
        ends = [_end(item, side, objects, merged, tally) for side in ("subject", "object")]
        predicate = item.get("predicate") if isinstance(item, dict) else None
        if None in ends or not isinstance(predicate, str):
            return None
        return RawRelationship(subject=ends[0], names=(predicate.lower(),), object=ends[1])

    edges = map(relationship, member(record, "relationships", list))
    return objects, tally.kept(edges, "malformed_relationship")


def _raw_image(
    image_id: str,
    size: tuple[int, int] | None,
    objects: dict[Any, RawObject],
    relationships: list[RawRelationship],
) -> RawImage:
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
    if (found := _object(end)) is None:
        tally.dropped["malformed_object"] += 1
        return None
    objects.setdefault(found.key, found)
    return found.key


def _object(item: Any) -> RawObject | None:
    if not isinstance(item, dict) or not isinstance(item.get("object_id"), int):
        return None
    names: Any = item.get("names") or [item.get("name")]
    box = box_of_sides([item.get(side) for side in ("x", "y", "w", "h")])
    if box is None or not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        return None
    return RawObject(key=item["object_id"], names=tuple(name.lower() for name in names), bbox=box)
