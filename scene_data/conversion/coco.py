"""COCO's object annotations with relations between them.

`images`, `annotations` and `categories` are COCO's; boxes are x, y, width, height. Relations are in
one of two places:

| layout | relations |
|---|---|
| SGG-Benchmark (Neau), one file a split | `rel_categories` `[{"id", "name"}]` and `rel_annotations` `[{"subject_id", "predicate_id", "object_id", "image_id"}]`, ids of annotations |
| RelTR (Cong et al. 2023, arXiv 2201.11460), `train.json`, `val.json`, `test.json` | `rel.json` beside them: `rel_categories` (names) and for each split `{image id: [[subject, object, predicate]]}`, places among the annotations of the image |
"""  # noqa: E501 - a table

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scene_data.conversion.by_image import ItemsByImage
from scene_data.conversion.raw import Box, FileSource, RawImage, RawObject, RawRelationship, Tally
from scene_data.conversion.records import (
    box_of_sides,
    image_id_of,
    is_triplet,
    member,
    numbered_names,
    placed,
    read_images,
)
from scene_data.reading.json_stream import member_kinds, read_members, stream_items, stream_members
from scene_data.reading.layouts import Layout, named_split
from scene_data.reading.refusal import refusal, shown
from scene_data.reading.rows import RowError, read_box, read_size

RELTR_FILE = "rel.json"

_RELATIONS = ("rel_annotations", "relations", "relationships")
_PREDICATES = ("rel_categories", "relation_categories", "predicate_categories", "predicates")
_PREDICATE_IDS = ("predicate_id", "category_id", "relation_id")
_LARGE = ("images", "annotations", *_RELATIONS)


class Coco(FileSource):
    """One file, read as a stream once for each of its lists; lists are put together on disk.

    Args:
        path: Of COCO's file. Without relations of its own they are those of `rel.json` beside it,
            and without such a file there are none.
        split: Where it goes; by the file's name when it is None.

    Raises:
        InvalidInputError: A list is missing.
    """

    title = Layout.COCO.title

    def __init__(self, path: Path, split: str | None = None) -> None:
        super().__init__(path)
        self._split = split or named_split(path)
        kinds = dict(member_kinds(path))
        if missing := [key for key in ("images", "annotations", "categories") if key not in kinds]:
            wanted = f"{', '.join(missing)} is wanted too, as in COCO"
            raise refusal(path, f"its members are {', '.join(kinds)}", wanted)
        self._relations = next((key for key in _RELATIONS if kinds.get(key) == "["), None)
        members = read_members(path, without=_LARGE)
        self._categories = numbered_names(members["categories"], path, "categories")
        self._reltr = path.parent / RELTR_FILE
        if self._relations is not None:
            key = next((key for key in _PREDICATES if key in members), _PREDICATES[0])
            self._predicates = numbered_names(members.get(key), path, key)
        elif self._reltr.is_file():
            names = dict(stream_members(self._reltr)).get("rel_categories")
            self._predicates = numbered_names(names, self._reltr, "rel_categories")

    def images(self, tally: Tally) -> Iterator[RawImage]:
        """All images of the file."""
        annotations = ItemsByImage(_keyed(stream_items(self._path, "annotations"), tally))
        relations = ItemsByImage(self._listed_relations(tally))

        def read(record: Any, place: str) -> RawImage:
            image_id = image_id_of(record, "id")
            listed = annotations.take(image_id)
            subjects = (_of_subject(item.get("id")) for item in listed)
            keys = [image_id, *(subjects if self._relations else ())]
            related = [item for key in keys for item in relations.take(key)]
            return self._image(image_id, record, _Image(listed, related, place), tally)

        records = placed(stream_items(self._path, "images"), "images[{}]", "id")
        yield from read_images(records, read, tally)
        for reason, items in (("annotation", annotations), ("relationship", relations)):
            if items.num_left:
                tally.dropped[f"{reason}_of_unknown_image"] += items.num_left

    def _listed_relations(self, tally: Tally) -> Iterator[tuple[str, Any]]:
        if self._relations is not None:
            items = stream_items(self._path, self._relations)
            yield from _keyed(items, tally, by_subject=True)
        elif self._reltr.is_file():
            for image_id, triplets in stream_members(self._reltr, self._split):
                for triplet in triplets if isinstance(triplets, list) else ():
                    yield image_id, triplet

    def _image(self, image_id: str, record: Any, about: "_Image", tally: Tally) -> RawImage:
        objects = []
        for place, item in enumerate(about.annotations):
            if item.get("iscrowd") == 1:
                tally.dropped["crowd"] += 1
            elif (box := _box(item)) is None:
                tally.dropped["malformed_object"] += 1
            else:
                number = item.get("category_id")
                name = self._named("category_id", number, self._categories, about.place)
                objects.append(RawObject(key=place, names=(name,), bbox=box))
        return RawImage(
            image_id=image_id,
            image=member(record, "file_name", str),
            size=read_size(record),
            split=self._split,
            objects=objects,
            relationships=[self._relation(item, about) for item in about.relations],
        )

    def _relation(self, item: Any, about: "_Image") -> RawRelationship:
        if self._relations is None:
            return self._triplet(item, about)
        ids = [annotation.get("id") for annotation in about.annotations]
        for key in ("subject_id", "object_id"):
            if item.get(key) not in ids:
                raise RowError(
                    f"{key} of {shown(item)} is the id of no annotation of the image, which has "
                    f"{shown(ids)}: ids are wanted, not places in the list",
                    "a relation names an annotation that the image does not have",
                )
        key = next((key for key in _PREDICATE_IDS if key in item), _PREDICATE_IDS[0])
        predicate = self._named(key, item.get(key), self._predicates, about.place)
        subject, object_ = (ids.index(item[key]) for key in ("subject_id", "object_id"))
        return RawRelationship(subject=subject, names=(predicate,), object=object_)

    def _triplet(self, item: Any, about: "_Image") -> RawRelationship:
        boxed = [i for i, found in enumerate(about.annotations) if found.get("iscrowd") != 1]
        if not is_triplet(item) or not all(0 <= place < len(boxed) for place in item[:2]):
            raise RowError(
                f"relation {shown(item)} of {RELTR_FILE} is not [subject, object, predicate] with "
                f"places among the {len(boxed)} annotations of the image",
                f"a relation of {RELTR_FILE} does not fit its image",
            )
        predicate = self._named("predicate_id", item[2], self._predicates, about.place)
        subject, object_ = (boxed[place] for place in item[:2])
        return RawRelationship(subject=subject, names=(predicate,), object=object_)

    def _named(self, key: str, number: Any, names: dict[Any, str], place: str) -> str:
        """The name of a category; one without means that they are numbered otherwise."""
        name = names.get(number) if isinstance(number, int | str) else None
        if name is None:
            raise refusal(
                self._path,
                f"{key} {shown(number)} has no name",
                f"an id of its categories is wanted: {shown(list(names), 30)}",
                row=place,
            )
        return name


class RelTr:
    """`train.json`, `val.json` and `test.json` beside `rel.json`, as many of them as there are.

    Raises:
        InvalidInputError: None of them is there.
    """

    title = Layout.RELTR.title

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        files = [path.parent / f"{split}.json" for split in ("train", "val", "test")]
        self._parts = [Coco(file, file.stem) for file in files if file.is_file()]
        if not self._parts:
            raise refusal(
                path, "none of train.json, val.json, test.json beside it", "put them there"
            )

    def images(self, tally: Tally) -> Iterator[RawImage]:
        """Those of all files."""
        for part in self._parts:
            yield from part.images(tally)


@dataclass(frozen=True, slots=True)
class _Image:
    """What the lists have about one image."""

    annotations: list[Any]
    relations: list[Any]
    place: str


def _of_subject(annotation: Any) -> str:
    """The key of relations that name no image: it is that of their subject."""
    return f"subject {annotation!a}"


def _keyed(
    items: Iterator[Any], tally: Tally, *, by_subject: bool = False
) -> Iterator[tuple[str, Any]]:
    """Items with the ids of their images, or of their subjects; those without are counted."""
    for item in items:
        if by_subject and isinstance(item, dict) and item.get("image_id") is None:
            yield _of_subject(item.get("subject_id")), item
            continue
        try:
            yield image_id_of(item), item
        except RowError:
            tally.dropped["item_without_image_id"] += 1


def _box(item: Any) -> Box | None:
    """The box of an annotation, or around the polygons of its segmentation."""
    if (box := box_of_sides(item.get("bbox"))) is not None:
        return box
    polygons = item.get("segmentation")
    if not isinstance(polygons, list) or not all(isinstance(polygon, list) for polygon in polygons):
        return None
    xs = [x for polygon in polygons for x in polygon[::2]]
    ys = [y for polygon in polygons for y in polygon[1::2]]
    try:
        return read_box([min(xs), min(ys), max(xs), max(ys)])
    except (TypeError, ValueError):
        return None
