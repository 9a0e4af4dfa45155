"""PSG as it is downloaded: `psg.json` (Yang et al. 2022, arXiv 2207.11247).

One object with `thing_classes`, `stuff_classes` and `predicate_classes` (names), `test_image_ids`,
and `data`: a list of `{"image_id", "file_name", "width", "height", "annotations": [{"bbox",
"bbox_mode", "category_id"}], "relations": [[subject, object, predicate]], …}`. Categories count
things first, then stuff, from 0; the numbers in `relations` are places in `annotations` and in
`predicate_classes`. `file_name` is inside COCO's folder, such as `train2017/000000000009.jpg`.
Datasets of one's own may have no `stuff_classes` and no `test_image_ids`; 1,177 of the public test
images have no `relations`.
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
from scene_data.layouts import TITLES
from scene_data.refusal import refusal, shown
from scene_data.rows import RowError, read_box

_XYXY, _XYWH = 0, 1
"""`bbox_mode`, as detectron2 numbers them"""


class Psg:
    """The file, read as a stream: once for its names, once for its images.

    Raises:
        InvalidInputError: It is no JSON, or the lists of names are not there.
    """

    title = TITLES["psg"]

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path
        members = read_members(path, without=("data",))
        stuff = _texts(members, "stuff_classes", path) if "stuff_classes" in members else []
        self._categories = _texts(members, "thing_classes", path) + stuff
        self._predicates = _texts(members, "predicate_classes", path)
        self._splits = {
            str(image_id): split
            for split in ("val", "test")
            for image_id in _listed_ids(members, f"{split}_image_ids", path)
        }

    def images(self, tally: Tally) -> Iterator[RawImage]:
        """All images, in the splits of `test_image_ids` and, in own datasets, `val_image_ids`."""
        for number, item in enumerate(stream_items(self._path, "data")):
            name = item.get("image_id") if isinstance(item, dict) else None
            place = f"data[{number}] (image {name})"
            try:
                yield self._image(item, place, tally)
            except RowError as error:
                tally.note_broken(place, error)

    def _image(self, item: Any, place: str, tally: Tally) -> RawImage:
        image_id = image_id_of(item)
        objects = []
        for key, annotation in enumerate(member(item, "annotations", list)):
            if (found := self._object(key, annotation, place)) is not None:
                objects.append(found)
            else:
                tally.dropped["malformed_object"] += 1
        relationships = []
        listed = item.get("relations")
        for relation in () if listed is None else member(item, "relations", list):
            if (triplet := self._relationship(relation, place)) is not None:
                relationships.append(triplet)
            else:
                tally.dropped["malformed_relationship"] += 1
        return RawImage(
            image_id=image_id,
            image=member(item, "file_name", str),
            size=size_of(item),
            split=self._splits.get(image_id, "train"),
            objects=objects,
            relationships=relationships,
        )

    def _object(self, key: int, annotation: Any, place: str) -> RawObject | None:
        if not isinstance(annotation, dict):
            return None
        box, mode = read_box(annotation.get("bbox")), annotation.get("bbox_mode", _XYXY)
        category: Any = annotation.get("category_id")
        if box is None or mode not in (_XYXY, _XYWH) or type(category) is not int:
            return None
        self._check(
            category, self._categories, "category_id", "thing_classes + stuff_classes", place
        )
        x, y, right, bottom = box
        if mode == _XYWH:
            right, bottom = x + right, y + bottom
        return RawObject(key=key, names=(self._categories[category],), bbox=(x, y, right, bottom))

    def _relationship(self, relation: Any, place: str) -> RawRelationship | None:
        if not isinstance(relation, list) or set(map(type, relation)) != {int}:
            return None
        if len(relation) != 3:
            return None
        subject, object_, predicate = relation
        self._check(
            predicate, self._predicates, "a relation's predicate", "predicate_classes", place
        )
        return RawRelationship(
            subject=subject, names=(self._predicates[predicate],), object=object_
        )

    def _check(self, number: int, names: list[str], what: str, lists: str, place: str) -> None:
        """One number outside means that they are counted otherwise: no name would be right."""
        if not 0 <= number < len(names):
            raise refusal(
                self._path,
                f"{what} is {number}, and {lists} has {len(names)} names",
                f"it counts from 0: 0 to {len(names) - 1} are wanted",
                row=place,
            )


def _listed_ids(members: dict[str, Any], key: str, path: Path) -> list[Any]:
    value = members.get(key) or []
    if not isinstance(value, list):
        raise refusal(path, f"{key!r} is {shown(value)}", "a list of image ids is wanted there")
    return value


def _texts(members: dict[str, Any], key: str, path: Path) -> list[str]:
    value = members.get(key)
    if not isinstance(value, list):
        raise refusal(path, f"{key!r} is {shown(value)}", "PSG has a list of names there")
    return [str(item) for item in value]
