"""VG150 as packed for Scene-Graph-Benchmark.pytorch: annotations in HDF5, names in JSON.

`VG-SGG-with-attri.h5` has for image i of `image_data.json` (without four damaged ones) `split` (0
training, 2 test) and `img_to_first_box`, `img_to_last_box`, `img_to_first_rel`, `img_to_last_rel`
(inclusive, -1 for none); for box j `boxes_1024` (centre x, centre y, width, height, where the
image's longer side is 1024) and `labels`; for relationship k `relationships` (two boxes) and
`predicates`. Labels count from 1; `VG-SGG-dicts-with-attri.json` has their names. Splits are read
as the benchmark reads them: images with relationships only, and validation is the first 5,000
training images. (Xu et al. 2017, arXiv 1701.02426; Tang et al. 2020, arXiv 2002.11949)
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scene_data.conversion.raw import (
    RawImage,
    RawObject,
    RawRelationship,
    Tally,
    image_id_of,
    size_of,
)
from scene_data.json_stream import read_members, stream_items
from scene_data.rows import RowError
from services.errors import InvalidInputError, SettingsError

NAMES_FILE = "VG-SGG-dicts-with-attri.json"
NUM_VALIDATION = 5000
LONGER_SIDE = 1024
"""Of an image, in the units of its boxes"""
DAMAGED = frozenset({"1592", "1722", "4616", "4617"})
"""Images that the packed arrays leave out"""

_ARRAYS = (
    "split",
    "img_to_first_box",
    "img_to_last_box",
    "img_to_first_rel",
    "img_to_last_rel",
    "boxes_1024",
    "labels",
    "relationships",
    "predicates",
)


class Vg150:
    """The three files of a folder; the arrays, some 30 MB, are held in memory.

    Raises:
        InvalidInputError: A file or an array is missing, or they do not fit each other.
        SettingsError: h5py is not installed.
    """

    title = "VG150 in HDF5"

    def __init__(self, path: Path) -> None:
        folder = path.parent
        for name in (NAMES_FILE, "image_data.json"):
            if not (folder / name).is_file():
                raise InvalidInputError(f"{folder} has no {name}: put it beside {path.name}")
        self._path = path
        self._arrays = _read_arrays(path)
        names = read_members(folder / NAMES_FILE, without="")
        self._labels = _names(names, "idx_to_label", folder)
        self._predicates = _names(names, "idx_to_predicate", folder)
        self._images = folder / "image_data.json"
        self._splits = _splits(self._arrays)

    def images(self, tally: Tally) -> Iterator[RawImage]:
        """Images of the splits; the others are counted."""
        place = 0
        for number, item in enumerate(stream_items(self._images)):
            try:
                image_id, size = image_id_of(item), size_of(item)
            except RowError as error:
                raise InvalidInputError(f"{self._images}: item {number}: {error}") from error
            if image_id in DAMAGED:
                continue
            if place < len(self._splits) and self._splits[place]:
                yield self._image(place, image_id, size)
            else:
                tally.left_out["in no split, or without a relationship"] += 1
            place += 1
        if place != len(self._splits):
            raise InvalidInputError(
                f"{self._path} is about {len(self._splits)} images and {self._images} about "
                f"{place}: they belong to different releases"
            )

    def _image(self, place: int, image_id: str, size: tuple[int, int]) -> RawImage:
        arrays = self._arrays
        first, last = arrays["img_to_first_box"][place], arrays["img_to_last_box"][place] + 1
        boxes = _corners(arrays["boxes_1024"][first:last]) * (max(size) / LONGER_SIDE)
        objects = [
            RawObject(
                key=int(first) + i,
                names=(self._labels[int(label)],),
                bbox=tuple(round(float(side), 2) for side in box),  # type: ignore[arg-type]
            )
            for i, (box, label) in enumerate(
                zip(boxes, arrays["labels"][first:last].ravel(), strict=True)
            )
        ]
        edges = slice(arrays["img_to_first_rel"][place], arrays["img_to_last_rel"][place] + 1)
        relationships = [
            RawRelationship(
                subject=int(subject), names=(self._predicates[int(predicate)],), object=int(object_)
            )
            for (subject, object_), predicate in zip(
                arrays["relationships"][edges], arrays["predicates"][edges].ravel(), strict=True
            )
        ]
        return RawImage(
            image_id=image_id,
            image=f"{image_id}.jpg",
            size=size,
            split=str(self._splits[place]),
            objects=objects,
            relationships=relationships,
        )


def _read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    try:
        import h5py  # type: ignore[import-untyped]
    except ImportError as error:
        raise SettingsError(f"{path} is HDF5: pip install h5py") from error
    try:
        with h5py.File(path, "r") as file:
            if missing := [name for name in _ARRAYS if name not in file]:
                raise InvalidInputError(f"{path} has no {', '.join(missing)}")
            return {name: file[name][:] for name in _ARRAYS}
    except OSError as error:
        raise InvalidInputError(f"{path} is not readable HDF5: {error}") from error


def _corners(boxes: NDArray[Any]) -> NDArray[np.float64]:
    """[N, 4] centre and sides to x1, y1, x2, y2, whole numbers as the benchmark has them."""
    centre, sides = boxes[:, :2].astype(np.int64), boxes[:, 2:].astype(np.int64)
    low = np.trunc(centre - sides / 2)
    return np.hstack([low, low + sides])


def _splits(arrays: dict[str, NDArray[Any]]) -> NDArray[np.str_]:
    """[images] `train`, `val`, `test`, or empty."""
    usable = (arrays["img_to_first_box"] >= 0) & (arrays["img_to_first_rel"] >= 0)
    splits = np.full(len(usable), "", dtype="<U5")
    training = np.flatnonzero(usable & (arrays["split"] == 0))
    splits[training[:NUM_VALIDATION]] = "val"
    splits[training[NUM_VALIDATION:]] = "train"
    splits[usable & (arrays["split"] == 2)] = "test"
    return splits


def _names(members: dict[str, Any], key: str, folder: Path) -> dict[int, str]:
    value = members.get(key)
    if not isinstance(value, dict):
        raise InvalidInputError(f"{folder / NAMES_FILE} has no {key!r}")
    return {int(number): str(name) for number, name in value.items()}
