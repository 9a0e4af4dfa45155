"""PSG as it is downloaded: `psg.json` (Yang et al. 2022, arXiv 2207.11247).

One object with `thing_classes`, `stuff_classes` and `predicate_classes` (names), `test_image_ids`,
and `data`: a list of `{"image_id", "file_name", "width", "height", "annotations": [{"bbox",
"bbox_mode", "category_id"}], "relations": [[subject, object, predicate]], …}`. Categories count
things first, then stuff, from 0; the numbers in `relations` are places in `annotations` and in
`predicate_classes`. `file_name` is inside COCO's folder, such as `train2017/000000000009.jpg`.
"""

from collections.abc import Iterator
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
from scene_data.json_stream import read_members, stream_items
from scene_data.rows import RowError, read_box
from services.errors import InvalidInputError

_XYXY, _XYWH = 0, 1
"""`bbox_mode`, as detectron2 numbers them"""


class Psg:
    """The file, read as a stream: once for its names, once for its images.

    Raises:
        InvalidInputError: It is no JSON, or the lists of names are not there.
    """

    title = "PSG"

    def __init__(self, path: Path) -> None:
        self._path = path
        members = read_members(path, without="data")
        things, stuff, self._predicates, test = (
            _texts(members, key, path)
            for key in ("thing_classes", "stuff_classes", "predicate_classes", "test_image_ids")
        )
        self._categories = things + stuff
        self._test = set(test)

    def images(self, tally: Tally) -> Iterator[RawImage]:
        """All images, in the splits `train` and `test` of `test_image_ids`."""
        for number, item in enumerate(stream_items(self._path, "data")):
            try:
                yield self._image(item, tally)
            except RowError as error:
                name = item.get("image_id") if isinstance(item, dict) else None
                tally.note_broken(f"data[{number}] (image {name})", error)

    def _image(self, item: Any, tally: Tally) -> RawImage:
        image_id = image_id_of(item)
        objects = []
        for key, annotation in enumerate(member(item, "annotations", list)):
            if (found := self._object(key, annotation)) is not None:
                objects.append(found)
            else:
                tally.dropped["malformed_object"] += 1
        relationships = []
        for relation in member(item, "relations", list):
            if (triplet := self._relationship(relation)) is not None:
                relationships.append(triplet)
            else:
                tally.dropped["malformed_relationship"] += 1
        return RawImage(
            image_id=image_id,
            image=member(item, "file_name", str),
            size=size_of(item),
            split="test" if image_id in self._test else "train",
            objects=objects,
            relationships=relationships,
        )

    def _object(self, key: int, annotation: Any) -> RawObject | None:
        if not isinstance(annotation, dict):
            return None
        box, mode = read_box(annotation.get("bbox")), annotation.get("bbox_mode", _XYXY)
        category: Any = annotation.get("category_id")
        known = mode in (_XYXY, _XYWH) and _is_place(category, self._categories)
        if box is None or not known:
            return None
        x, y, right, bottom = box
        if mode == _XYWH:
            right, bottom = x + right, y + bottom
        return RawObject(key=key, names=(self._categories[category],), bbox=(x, y, right, bottom))

    def _relationship(self, relation: Any) -> RawRelationship | None:
        if not isinstance(relation, list) or len(relation) != 3:
            return None
        subject, object_, predicate = relation
        if not _is_place(predicate, self._predicates) or {type(subject), type(object_)} != {int}:
            return None
        return RawRelationship(
            subject=subject, names=(self._predicates[predicate],), object=object_
        )


def _is_place(value: Any, names: list[str]) -> bool:
    return type(value) is int and 0 <= value < len(names)


def _texts(members: dict[str, Any], key: str, path: Path) -> list[str]:
    value = members.get(key)
    if not isinstance(value, list):
        raise InvalidInputError(f"{path} has no list {key!r}: it is not PSG's psg.json")
    return [str(item) for item in value]
