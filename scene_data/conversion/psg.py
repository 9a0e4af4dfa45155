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
from functools import partial
from pathlib import Path
from typing import Any

from scene_data.conversion.raw import FileSource, RawImage, RawObject, RawRelationship, Tally
from scene_data.conversion.records import (
    box_of_sides,
    counted_name,
    image_id_of,
    is_triplet,
    member,
    placed,
    read_images,
    size_of,
)
from scene_data.reading.json_stream import read_members, stream_items
from scene_data.reading.layouts import Layout
from scene_data.reading.refusal import refusal, shown
from scene_data.reading.rows import read_box

_XYXY, _XYWH = 0, 1
"""`bbox_mode`, as detectron2 numbers them"""


class Psg(FileSource):
    """The file, read as a stream: once for its names, once for its images.

    Raises:
        InvalidInputError: It is no JSON, or the lists of names are not there.
    """

    title = Layout.PSG.title

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        members = read_members(path, without=("data",))
        stuff = _texts(members, "stuff_classes", path) if "stuff_classes" in members else []
        self._categories = dict(enumerate(_texts(members, "thing_classes", path) + stuff))
        self._predicates = dict(enumerate(_texts(members, "predicate_classes", path)))
        self._splits = {
            str(image_id): split
            for split in ("val", "test")
            for image_id in _listed_ids(members, f"{split}_image_ids", path)
        }

    def images(self, tally: Tally) -> Iterator[RawImage]:
        """All images, in the splits of `test_image_ids` and, in own datasets, `val_image_ids`."""
        records = placed(stream_items(self._path, "data"), "data[{}]")
        return read_images(records, partial(self._image, tally), tally)

    def _image(self, tally: Tally, item: Any, place: str) -> RawImage:
        image_id = image_id_of(item)
        annotations = enumerate(member(item, "annotations", list))
        objects = (self._object(key, annotation, place) for key, annotation in annotations)
        kept = tally.kept(objects, "malformed_object")
        listed = item.get("relations")
        relations = () if listed is None else member(item, "relations", list)
        relationships = (self._relationship(relation, place) for relation in relations)
        return RawImage(
            image_id=image_id,
            image=member(item, "file_name", str),
            size=size_of(item),
            split=self._splits.get(image_id, "train"),
            objects=kept,
            relationships=tally.kept(relationships, "malformed_relationship"),
        )

    def _object(self, key: int, annotation: Any, place: str) -> RawObject | None:
        if not isinstance(annotation, dict):
            return None
        mode, category = annotation.get("bbox_mode", _XYXY), annotation.get("category_id")
        read = {_XYXY: read_box, _XYWH: box_of_sides}.get(mode)
        box = read(annotation.get("bbox")) if read else None
        if box is None or type(category) is not int:
            return None
        lists = "thing_classes + stuff_classes"
        name = counted_name(self._categories, category, "category_id", lists, self._path, place)
        return RawObject(key=key, names=(name,), bbox=box)

    def _relationship(self, relation: Any, place: str) -> RawRelationship | None:
        if not is_triplet(relation):
            return None
        subject, object_, predicate = relation
        what, lists = "a relation's predicate", "predicate_classes"
        name = counted_name(self._predicates, predicate, what, lists, self._path, place)
        return RawRelationship(subject=subject, names=(name,), object=object_)


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
