"""GQA's scene graphs (Hudson and Manning 2019, arXiv 1902.09506).

`train_sceneGraphs.json` and `val_sceneGraphs.json` have for each image id `{"width", "height",
"objects": {object id: {"name", "x", "y", "w", "h", "relations": [{"name", "object": object id}],
…}}, …}`.
"""

from collections.abc import Iterator
from typing import Any

from scene_data.conversion.raw import FileSource, RawImage, RawObject, RawRelationship, Tally
from scene_data.conversion.records import box_of_sides, member, read_images
from scene_data.reading.json_stream import stream_members
from scene_data.reading.layouts import Layout, named_split
from scene_data.reading.rows import read_size


class Gqa(FileSource):
    """A file, read as a stream."""

    title = Layout.GQA.title

    def images(self, tally: Tally) -> Iterator[RawImage]:
        """All images, in the split of the file's name."""
        split = named_split(self._path)
        members = ((f"image {found[0]}", found) for found in stream_members(self._path))
        return read_images(members, lambda it, _: _image(it[0], it[1], split, tally), tally)


def _image(image_id: str, record: Any, split: str, tally: Tally) -> RawImage:
    objects, relationships = [], []
    for key, item in member(record, "objects", dict).items():
        if (found := _object(key, item)) is not None:
            objects.append(found)
        else:
            tally.dropped["malformed_object"] += 1
        for relation in _relations(item):
            name, other = (relation.get(of) for of in ("name", "object"))
            if isinstance(name, str) and isinstance(other, str | int):
                edge = RawRelationship(subject=key, names=(name,), object=str(other))
                relationships.append(edge)
            else:
                tally.dropped["malformed_relationship"] += 1
    return RawImage(
        image_id=image_id,
        image=f"{image_id}.jpg",
        size=read_size(record),
        split=split,
        objects=objects,
        relationships=relationships,
    )


def _relations(item: Any) -> list[dict[str, Any]]:
    """An object's relations, which it lists, or has by number in some releases."""
    found = item.get("relations") if isinstance(item, dict) else None
    values = list(found.values()) if isinstance(found, dict) else found
    if not isinstance(values, list):
        return []
    return [relation if isinstance(relation, dict) else {} for relation in values]


def _object(key: str, item: Any) -> RawObject | None:
    name = item.get("name") if isinstance(item, dict) else None
    box = box_of_sides([item.get(side) for side in ("x", "y", "w", "h")]) if name else None
    if box is None or not isinstance(name, str):
        return None
    return RawObject(key=key, names=(name,), bbox=box)
