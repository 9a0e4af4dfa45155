"""VG150 as packed for Scene-Graph-Benchmark.pytorch: annotations in HDF5, names in JSON.

`VG-SGG-with-attri.h5` has for image i of `image_data.json` (without four damaged ones) `split` (0
training, 2 test) and `img_to_first_box`, `img_to_last_box`, `img_to_first_rel`, `img_to_last_rel`
(inclusive, -1 for none); for box j `boxes_1024` (centre x, centre y, width, height, where the
image's longer side is 1024) and `labels`; for relationship k `relationships` (two boxes, counted
over the whole file) and `predicates`. Labels count from 1; `VG-SGG-dicts-with-attri.json` has their
names. Splits are read as the benchmark reads them: images with relationships only, and validation
is the first 5,000 training images. (Xu et al. 2017, arXiv 1701.02426; Tang et al. 2020, arXiv
2002.11949)

Datasets of one's own in this layout may name their images (`file_name`), have boxes at another
scale (`boxes_512`), a split 1 for validation, or no `split`. Of fewer than 50,000 training images
the first tenth is validation.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scene_data.conversion.raw import FileSource, RawImage, RawObject, RawRelationship, Tally
from scene_data.conversion.records import image_id_of, numbered_names, size_of
from scene_data.reading.json_stream import read_members, stream_items
from scene_data.reading.layouts import Layout
from scene_data.reading.refusal import refusal
from scene_data.reading.rows import RowError
from services.errors import InvalidInputError, SettingsError

NAMES_FILE = "VG-SGG-dicts-with-attri.json"
NUM_VALIDATION = 5000
VALIDATION_SHARE = 0.1
"""Share of the training images, at most"""
DAMAGED = frozenset({"1592", "1722", "4616", "4617"})
"""Images that the packed arrays of Visual Genome leave out"""

_OF_IMAGES = ("img_to_first_box", "img_to_last_box", "img_to_first_rel", "img_to_last_rel")
_OF_BOXES = ("boxes", "labels")
_OF_RELATIONSHIPS = ("relationships", "predicates")
_SPLITS = {0: "train", 1: "val", 2: "test"}
_OVER_THE_FILE = "both count from 0 over the whole file, the last one included"
_FILE_NAMES = ("file_name", "filename", "path")


class Vg150(FileSource):
    """The three files of a folder; the arrays, some 30 MB, are held in memory.

    Raises:
        InvalidInputError: A file or an array is missing, or they do not fit each other.
        SettingsError: h5py is not installed.
    """

    title = Layout.VG150.title

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._images = path.parent / "image_data.json"
        self._names_file = _names_file(path)
        if not self._images.is_file():
            raise refusal(path, "no image_data.json beside it", "put it there")
        members = read_members(self._names_file)
        self._labels = _names(members, "idx_to_label", "label_to_idx", self._names_file)
        self._predicates = _names(members, "idx_to_predicate", "predicate_to_idx", self._names_file)
        self._arrays, self._longer_side = _read_arrays(path)
        self._check_arrays()
        self._splits = self._split_images()

    def images(self, tally: Tally) -> Iterator[RawImage]:
        """Images of the splits; the others are counted."""
        place, left_out = 0, self._left_out_ids()
        for number, item in enumerate(stream_items(self._images)):
            try:
                image_id, size = image_id_of(item), size_of(item)
            except RowError as error:
                wanted = "every image needs its id, width and height"
                raise refusal(self._images, str(error), wanted, row=f"item {number}") from error
            if image_id in left_out:
                continue
            if self._splits[place]:
                yield self._image(place, image_id, size, _file_name(item, image_id))
            else:
                tally.left_out["in no split, or without a relationship"] += 1
            place += 1

    def _left_out_ids(self) -> frozenset[str]:
        """The damaged images where the arrays leave them out.

        Raises:
            InvalidInputError: The numbers of images do not fit.
        """
        items = stream_items(self._images)
        ids = [str(item.get("image_id") if isinstance(item, dict) else None) for item in items]
        damaged = DAMAGED & set(ids)
        for left_out in (frozenset[str](), damaged):
            if len(ids) - len(left_out) == len(self._splits):
                return left_out
        raise refusal(
            self._path,
            f"it is about {len(self._splits)} images, and {self._images} about {len(ids)}",
            "they belong to different releases: use files that were made together",
        )

    def _image(self, place: int, image_id: str, size: tuple[int, int], file: str) -> RawImage:
        arrays = self._arrays
        first, last = arrays["img_to_first_box"][place], arrays["img_to_last_box"][place] + 1
        boxes = _corners(arrays["boxes"][first:last]) * (max(size) / self._longer_side)
        objects = [
            RawObject(
                key=int(first) + i,
                names=(self._labels[int(label)],),
                bbox=tuple(round(float(side), 2) for side in box),  # type: ignore[arg-type]
            )
            for i, (box, label) in enumerate(zip(boxes, arrays["labels"][first:last], strict=True))
        ]
        edges = slice(arrays["img_to_first_rel"][place], arrays["img_to_last_rel"][place] + 1)
        relationships = [
            RawRelationship(
                subject=int(subject), names=(self._predicates[int(predicate)],), object=int(object_)
            )
            for (subject, object_), predicate in zip(
                arrays["relationships"][edges], arrays["predicates"][edges], strict=True
            )
        ]
        return RawImage(
            image_id=image_id,
            image=file,
            size=size,
            split=str(self._splits[place]),
            objects=objects,
            relationships=relationships,
        )

    def _check_arrays(self) -> None:
        """See that the arrays fit each other, before any of them is believed.

        Raises:
            InvalidInputError: They do not; the message names the first row that is wrong.
        """
        arrays = self._arrays
        boxes = f"boxes_{self._longer_side}"
        for names in (("split", *_OF_IMAGES), _OF_BOXES, _OF_RELATIONSHIPS):
            lengths = {name.replace("boxes", boxes): len(arrays[name]) for name in names}
            longest = max(lengths, key=lengths.__getitem__)
            for name, length in lengths.items():
                if length != lengths[longest]:
                    raise self._refusal(
                        f"{name} has {length} rows, {longest} has {lengths[longest]}",
                        "they have one row each for the same things",
                    )
        self._check_numbers("labels", self._labels, "idx_to_label")
        self._check_numbers("predicates", self._predicates, "idx_to_predicate")
        self._check_ranges("box", len(arrays["labels"]))
        self._check_ranges("rel", len(arrays["predicates"]))
        self._check_ends()

    def _check_numbers(self, name: str, known: dict[int, str], key: str) -> None:
        numbers = self._arrays[name]
        if len(wrong := np.flatnonzero(~np.isin(numbers, list(known)))):
            raise self._refusal(
                f"{name}[{wrong[0]}] is {numbers[wrong[0]]}, which has no name in {key} of "
                f"{self._names_file.name} ({min(known)} to {max(known)})",
                f"{name} count from 1",
            )

    def _check_ranges(self, what: str, num: int) -> None:
        """First and last, both inclusive, of each image's boxes or relationships."""
        first, last = (self._arrays[f"img_to_{end}_{what}"] for end in ("first", "last"))
        if len(wrong := np.flatnonzero((first >= 0) & ((last < first) | (last >= num)))):
            place = wrong[0]
            raise self._refusal(
                f"image {place} has img_to_first_{what} {first[place]} and img_to_last_{what} "
                f"{last[place]}, and the file has {num} of them",
                _OVER_THE_FILE,
            )
        order = np.argsort(first, kind="stable")
        order = order[first[order] >= 0]
        if len(shared := np.flatnonzero(first[order][1:] <= last[order][:-1])):
            one, other = order[shared[0] : shared[0] + 2]
            raise self._refusal(
                f"images {one} and {other} share entries: img_to_first_{what} and "
                f"img_to_last_{what} are {first[one]}, {last[one]} and "
                f"{first[other]}, {last[other]}",
                _OVER_THE_FILE,
            )

    def _check_ends(self) -> None:
        """Boxes of a relationship are those of its image."""
        arrays = self._arrays
        for place in np.flatnonzero(arrays["img_to_first_rel"] >= 0):
            first, last = arrays["img_to_first_box"][place], arrays["img_to_last_box"][place]
            row, end = arrays["img_to_first_rel"][place], arrays["img_to_last_rel"][place] + 1
            pairs = arrays["relationships"][row:end]
            wrong = np.flatnonzero(((pairs < first) | (pairs > last) | (first < 0)).any(axis=1))
            if len(wrong):
                raise self._refusal(
                    f"relationships[{row + wrong[0]}] is {pairs[wrong[0]].tolist()}, and image "
                    f"{place} has boxes {first} to {last}",
                    "boxes count from 0 over the whole file, not within the image",
                )

    def _split_images(self) -> NDArray[np.str_]:
        """[images] `train`, `val`, `test`, or empty.

        Raises:
            InvalidInputError: An image is in a split of an unknown number.
        """
        arrays = self._arrays
        if len(wrong := np.flatnonzero(~np.isin(arrays["split"], list(_SPLITS)))):
            found = f"split[{wrong[0]}] is {arrays['split'][wrong[0]]}"
            raise self._refusal(found, "0 (training), 1 (validation) or 2 (test) is wanted")
        usable = (arrays["img_to_first_box"] >= 0) & (arrays["img_to_first_rel"] >= 0)
        splits = np.full(len(usable), "", dtype="<U5")
        for number, split in _SPLITS.items():
            splits[usable & (arrays["split"] == number)] = split
        if 1 not in arrays["split"]:
            training = np.flatnonzero(splits == "train")
            splits[training[: min(NUM_VALIDATION, int(VALIDATION_SHARE * len(training)))]] = "val"
        return splits

    def _refusal(self, found: str, wanted: str) -> InvalidInputError:
        return refusal(self._path, found, wanted)


def _read_arrays(path: Path) -> tuple[dict[str, NDArray[Any]], int]:
    """The arrays by name, the boxes as `boxes`; and the longer side of an image in their units."""
    try:
        import h5py  # type: ignore[import-untyped]
    except ImportError as error:
        raise SettingsError(f"{path} is HDF5: pip install h5py") from error
    try:
        with h5py.File(path, "r") as file:
            sides = [name.removeprefix("boxes_") for name in file if name.startswith("boxes_")]
            side = max(
                (int(side) for side in sides if side.isdecimal() and int(side)), default=1024
            )
            names = [*_OF_IMAGES, f"boxes_{side}", "labels", *_OF_RELATIONSHIPS]
            if missing := [name for name in names if name not in file]:
                wanted = f"it has {', '.join(file) or 'nothing'}: use the layout of VG-SGG.h5"
                raise refusal(path, f"it has no {', '.join(missing)}", wanted)
            names += ["split"] if "split" in file else []
            arrays = {name: _read_array(file[name], path) for name in names}
            arrays["boxes"] = arrays.pop(f"boxes_{side}")
            arrays.setdefault("split", np.zeros_like(arrays["img_to_first_box"]))
    except OSError as error:
        raise refusal(path, f"not readable HDF5 ({error})", "download it again") from error
    return arrays, side


def _read_array(item: Any, path: Path) -> NDArray[Any]:
    """[N], or [N, columns] of boxes and relationships.

    Raises:
        InvalidInputError: It is of another shape or type.
    """
    name = item.name.removeprefix("/")
    columns = 4 if name.startswith("boxes_") else 2 if name == "relationships" else 1
    array = np.asarray(item[()] if hasattr(item, "dtype") else None)
    if array.dtype.kind not in ("iuf" if columns == 4 else "iu"):
        found = f"{name} holds {array.dtype}"
        raise refusal(path, found, "numbers are wanted, whole ones but for boxes")
    if array.ndim == 0 or array.size != len(array) * columns:
        shape = " x ".join(map(str, array.shape)) or "one number"
        raise refusal(path, f"{name} has {shape} numbers", f"{columns} a row are wanted")
    if len(wrong := np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(axis=1))):
        found = f"{name}[{wrong[0]}] is {array[wrong[0]].tolist()}"
        raise refusal(path, found, "finite numbers are wanted")
    return array.reshape(len(array), columns) if columns > 1 else array.reshape(-1)


def _corners(boxes: NDArray[Any]) -> NDArray[np.float64]:
    """[N, 4] centre and sides to x1, y1, x2, y2; whole numbers stay whole, as the benchmark's."""
    centre, sides = boxes[:, :2].astype(np.float64), boxes[:, 2:].astype(np.float64)
    low = centre - sides / 2
    low = np.trunc(low) if boxes.dtype.kind in "iu" else low
    return np.hstack([low, low + sides])


def _names_file(path: Path) -> Path:
    """The names beside the arrays: the benchmark's, or the only `*dicts*.json`."""
    found = sorted(file for file in path.parent.glob("*.json") if "dicts" in file.name.lower())
    usual = path.parent / NAMES_FILE
    if usual in found or len(found) == 1:
        return usual if usual in found else found[0]
    listed = ", ".join(file.name for file in found) or f"no {NAMES_FILE}"
    raise refusal(path, f"{listed} beside it", f"put {NAMES_FILE} there, with the names")


def _names(members: dict[str, Any], key: str, inverse: str, file: Path) -> dict[int, str]:
    value = members.get(key)
    if value is None and isinstance(members.get(inverse), dict):
        value = {str(number): name for name, number in members[inverse].items()}
    return numbered_names(value, file, key)


def _file_name(item: dict[str, Any], image_id: str) -> str:
    named = (item.get(key) for key in _FILE_NAMES)
    return next((name for name in named if isinstance(name, str) and name), f"{image_id}.jpg")
