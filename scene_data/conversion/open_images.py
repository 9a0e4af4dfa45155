"""Open Images' relations (Kuznetsova et al. 2020, arXiv 1811.00982), in two layouts.

The CSV files as downloaded, `oidv6-train-annotations-vrd.csv` or `challenge-2019-train-vrd.csv`,
have a relation a line: `ImageID`, `LabelName1`, `LabelName2`, two boxes (`XMin1`, `XMax1`, …) in
shares of the image, `RelationshipLabel` (`RelationLabel` in early releases). Labels such as
`/m/04yx4` have their names in `*class*.csv` beside them, such as
`oidv6-class-descriptions.csv`. `is` says what an object is
like, not how it relates to another: such lines are counted and left out.

PySGG packs them as JSON (Li et al. 2021, arXiv 2104.00308): `vrd-train-anno.json` lists `{"img_fn",
"img_size": [width, height], "bbox": [[x1, y1, x2, y2]], "det_labels": [number], "rel": [[subject,
object, predicate]]}`, and `categories_dict.json` has the names, `obj` and `rel`, from 0.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scene_data.conversion.by_image import ItemsByImage
from scene_data.conversion.raw import Box, FileSource, RawImage, RawObject, RawRelationship, Tally
from scene_data.conversion.records import (
    counted_name,
    is_triplet,
    member,
    numbered_names,
    read_images,
    size_of,
)
from scene_data.reading.json_stream import read_members, stream_items
from scene_data.reading.layouts import Layout, csv_lines, named_split
from scene_data.reading.refusal import refusal, shown
from scene_data.reading.rows import RowError, read_box

NAMES_FILE = "categories_dict.json"

_BOXES = tuple(f"{side}{end}" for end in (1, 2) for side in ("XMin", "YMin", "XMax", "YMax"))
_PREDICATES = ("RelationshipLabel", "RelationLabel")


class OpenImagesCsv(FileSource):
    """A file of relations; lines are put together by image on disk.

    Raises:
        InvalidInputError: A column is missing, or the file with the names is not there.
    """

    title = Layout.OPEN_IMAGES_CSV.title

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._columns = next(csv_lines(path), [])
        self._predicate = next((key for key in _PREDICATES if key in self._columns), _PREDICATES[0])
        wanted = ("ImageID", "LabelName1", "LabelName2", *_BOXES, self._predicate)
        if missing := [key for key in wanted if key not in self._columns]:
            found = f"its columns are {', '.join(self._columns)}"
            raise refusal(path, found, f"{', '.join(missing)} is wanted too")
        self._names = self._read_names()

    def images(self, tally: Tally) -> Iterator[RawImage]:
        """Images in the order of their first line, in the split of the file's name."""
        lines = ItemsByImage(self._lines(tally))
        split = named_split(self._path)
        for image_id in lines.images():
            objects: dict[Any, RawObject] = {}
            relations = [self._relation(item, objects, tally) for item in lines.take(image_id)]
            yield RawImage(
                image_id=image_id,
                image=f"{image_id}.jpg",
                size=None,
                split=split,
                objects=list(objects.values()),
                relationships=[relation for relation in relations if relation is not None],
                in_shares=True,
            )

    def _lines(self, tally: Tally) -> Iterator[tuple[str, dict[str, str]]]:
        for number, line in enumerate(csv_lines(self._path)):
            if number and line:
                if len(line) != len(self._columns):
                    tally.dropped["malformed_relationship"] += 1
                    continue
                item = dict(zip(self._columns, line, strict=True))
                yield item["ImageID"], item

    def _relation(
        self, item: dict[str, str], objects: dict[Any, RawObject], tally: Tally
    ) -> RawRelationship | None:
        if item[self._predicate] == "is":
            tally.dropped["attribute"] += 1
            return None
        ends = []
        for end in (1, 2):
            box = _numbers([item[key] for key in _BOXES if key.endswith(str(end))])
            if box is None:
                tally.dropped["malformed_relationship"] += 1
                return None
            key = (item[f"LabelName{end}"], box)
            objects.setdefault(key, RawObject(key=key, names=(self._name(key[0]),), bbox=box))
            ends.append(key)
        return RawRelationship(subject=ends[0], names=(item[self._predicate],), object=ends[1])

    def _name(self, label: str) -> str:
        if label.startswith("/") and label not in self._names:
            raise refusal(
                self._path,
                f"label {label} has no name in a *class*.csv beside it",
                "put the class descriptions of the same release there",
            )
        return self._names.get(label, label)

    def _read_names(self) -> dict[str, str]:
        files = sorted(self._path.parent.glob("*class*.csv"))
        lines = (line for file in files for line in csv_lines(file))
        return {line[0]: line[1].lower() for line in lines if len(line) == 2}


class OpenImages(FileSource):
    """PySGG's JSON, read as a stream.

    Raises:
        InvalidInputError: The file with the names is not there, or is another.
    """

    title = Layout.OPEN_IMAGES.title

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        names = path.parent / NAMES_FILE
        if not names.is_file():
            raise refusal(path, f"no {NAMES_FILE} beside it", "put it there, with the names")
        members = read_members(names)
        self._objects = numbered_names(members.get("obj"), names, "obj")
        self._predicates = numbered_names(members.get("rel"), names, "rel")

    def images(self, tally: Tally) -> Iterator[RawImage]:
        """All images, in the split of the file's name."""
        items = enumerate(stream_items(self._path))
        records = ((f"item {number}", item) for number, item in items)
        return read_images(records, self._image, tally)

    def _image(self, item: Any, place: str) -> RawImage:
        boxes, labels, relations = (
            member(item, key, list) for key in ("bbox", "det_labels", "rel")
        )
        if len(boxes) != len(labels):
            raise RowError(
                f"bbox has {len(boxes)} entries, det_labels has {len(labels)}",
                "bbox and det_labels are of different lengths",
            )
        image_id = member(item, "img_fn", str)
        size = dict(zip(("width", "height"), member(item, "img_size", list), strict=False))
        objects = []
        for key, (box, label) in enumerate(zip(boxes, labels, strict=True)):
            if (bbox := read_box(box)) is None:
                raise RowError(f"bbox[{key}] is {shown(box)}, not four numbers", "a malformed bbox")
            name = self._name(label, self._objects, "det_labels", place)
            objects.append(RawObject(key=key, names=(name,), bbox=bbox))
        return RawImage(
            image_id=Path(image_id).stem,
            image=image_id if Path(image_id).suffix else f"{image_id}.jpg",
            size=size_of(size),
            split=named_split(self._path),
            objects=objects,
            relationships=[self._relation(relation, place) for relation in relations],
        )

    def _relation(self, relation: Any, place: str) -> RawRelationship:
        if not is_triplet(relation):
            raise RowError(
                f"rel has {shown(relation)}, not [subject, object, predicate]", "a malformed rel"
            )
        subject, object_, predicate = relation
        name = self._name(predicate, self._predicates, "a predicate of rel", place)
        return RawRelationship(subject=subject, names=(name,), object=object_)

    def _name(self, number: Any, names: dict[Any, str], what: str, place: str) -> str:
        return counted_name(names, number, what, NAMES_FILE, self._path, place)


def _numbers(texts: list[str]) -> Box | None:
    try:
        return read_box([float(text) for text in texts])
    except ValueError:
        return None
