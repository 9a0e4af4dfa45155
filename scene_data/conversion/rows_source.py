"""A dataset that is in one of the usual layouts already, to be filtered or packed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scene_data.conversion.raw import RawImage, RawObject, RawRelationship, Tally
from scene_data.reading.rows import RowError, image_id_text, read_graph, read_size, row_items
from scene_data.reading.sources import Row, open_rows, split_of


class DatasetRows:
    """Rows of any layout in `docs/data.md`.

    An object or relationship may have a member with the vocabulary's name (`"vg150": "man"`, or
    null for a name outside): it is then used for the mapping in place of the annotated name.

    Args:
        name: Path or hub name.
        vocabulary: That members may be named by.
        need_images: Leave out rows without an image.

    Raises:
        InvalidInputError: Nothing has that name, or its layout is unknown.
    """

    title = "a dataset of rows"

    def __init__(self, name: str, vocabulary: str | None, *, need_images: bool) -> None:
        self.name = name
        self._rows = open_rows(name, need_images=False)
        self._need_images = need_images
        self._vocabulary = vocabulary or ""
        self._split = _split_of(name)

    def images(self, tally: Tally) -> Iterator[RawImage]:
        """All usable rows, in one split: the file's name, or the hub's split."""
        for index in range(len(self._rows)):
            try:
                row = self._rows.row(index)
                if self._need_images and not row.get("image"):
                    tally.left_out["row without an image"] += 1
                else:
                    yield self._image(row, tally)
            except RowError as error:
                tally.note_broken(self._rows.place(index), error)

    def _image(self, row: Row, tally: Tally) -> RawImage:
        graph, dropped = read_graph(row)
        tally.dropped.update(dropped)
        object_names = self._mapped(row, "objects", ("id",))
        edge_names = self._mapped(row, "relationships", ("subject", "predicate", "object"))
        return RawImage(
            image_id=image_id_text(row["image_id"]),
            image=row["image"],
            size=read_size(row),
            split=self._split,
            objects=[
                RawObject(
                    key=item.id,
                    names=object_names.get((item.id,), (item.category,)),
                    bbox=item.bbox,
                )
                for item in graph.objects
            ],
            relationships=[
                RawRelationship(
                    subject=edge.subject,
                    names=edge_names.get(
                        (edge.subject, edge.predicate, edge.object), (edge.predicate,)
                    ),
                    object=edge.object,
                )
                for edge in graph.relationships
            ],
        )

    def _mapped(
        self, row: Row, column: str, members: tuple[str, ...]
    ) -> dict[tuple[Any, ...], tuple[str, ...]]:
        """Names in the vocabulary that come with the rows, by what they are about."""
        return {
            tuple(item[key] for key in members): (name,) if isinstance(name, str) else ()
            for item in row_items(row, column)
            if (name := item.get(self._vocabulary, self)) is not self
        }


def _split_of(name: str) -> str:
    path = Path(name)
    if path.is_file():
        return split_of(path)
    return "train" if path.is_dir() else name.partition(":")[2] or "train"
