from pathlib import Path
from typing import Any

import h5py  # type: ignore[import-untyped]
import numpy as np
import pytest

from scene_data.conversion import vg150
from scene_data.dataset import open_dataset
from scene_graph.graph import Relationship, SceneObject
from services.errors import InvalidInputError
from tests.raw_annotations import converted, picture, put

ARRAYS = (
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
LABELS = {"1": "man", "2": "horse"}
PREDICATES = {"1": "riding", "2": "near"}
BOX = [512, 256, 513, 100]
"""Centre and sides where 1024 is the longer side"""
IMAGES: list[tuple[int, int, int, int]] = [
    # id, split, boxes, relationships
    (10, 0, 2, 1),  # validation: the first of training
    (1592, 0, 0, 0),  # damaged: not in the arrays
    (11, 0, 0, 0),
    (12, 2, 2, 2),
    (13, 0, 2, 0),
    (14, 0, 2, 1),
]


SIZES = [{"image_id": i, "width": 64, "height": 48} for i, *_ in IMAGES]


def _put(folder: Path, **changes: Any) -> Path:
    """The three files, and a 64 x 48 image for each image."""
    arrays: dict[str, list[Any]] = {name: [] for name in ARRAYS}
    for image_id, split, num_boxes, num_edges in IMAGES:
        put(folder / f"pixels/{image_id}.jpg", picture())
        if str(image_id) in vg150.DAMAGED:
            continue
        box, edge = len(arrays["boxes_1024"]), len(arrays["predicates"])
        arrays["split"].append(split)
        arrays["img_to_first_box"].append(box if num_boxes else -1)
        arrays["img_to_last_box"].append(box + num_boxes - 1 if num_boxes else -1)
        arrays["img_to_first_rel"].append(edge if num_edges else -1)
        arrays["img_to_last_rel"].append(edge + num_edges - 1 if num_edges else -1)
        arrays["boxes_1024"] += [BOX, [64, 64, 128, 128]][:num_boxes]
        arrays["labels"] += [[1], [2]][:num_boxes]
        arrays["relationships"] += [[box, box + 1], [box + 1, box]][:num_edges]
        arrays["predicates"] += [[1], [2]][:num_edges]
    file = folder / "VG-SGG-with-attri.h5"
    with h5py.File(file, "w") as written:
        for name, values in {**arrays, **changes}.items():
            if values is not None:
                written[name] = np.array(values, dtype=np.int32)
    names = {"idx_to_label": LABELS, "idx_to_predicate": PREDICATES, "object_count": {}}
    put(folder / vg150.NAMES_FILE, names)
    put(folder / "image_data.json", SIZES)
    return file


@pytest.fixture
def _one_validation_image(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (vg150.NUM_VALIDATION, vg150.VALIDATION_SHARE) == (5000, 0.1)
    monkeypatch.setattr(vg150, "NUM_VALIDATION", 1)
    monkeypatch.setattr(vg150, "VALIDATION_SHARE", 1.0)


@pytest.mark.usefixtures("_one_validation_image")
def test_splits_boxes_and_names_are_the_benchmarks(tmp_path: Path) -> None:
    _put(tmp_path)
    done = converted(tmp_path, tmp_path / "out", image_folders=(tmp_path / "pixels",))
    assert done.tally.left_out == {"in no split, or without a relationship": 2}
    ids = {
        split: [sample.image_id for sample in open_dataset(tmp_path / f"out/{split}.parquet")]
        for split in ("train", "val", "test")
    }
    assert ids == {"train": ["14"], "val": ["10"], "test": ["12"]}
    graph = open_dataset(tmp_path / "out/test.parquet")[0].graph
    # 512 - 513 / 2 is cut to 255, as integer arrays do; the longer side, 64, is 1024 there.
    assert graph.objects == (
        SceneObject(id="man.1", bbox=(15.94, 12.88, 48.0, 19.12)),
        SceneObject(id="horse.2", bbox=(0, 0, 8, 8)),
    )
    assert graph.relationships == (
        Relationship(subject="man.1", predicate="riding", object="horse.2"),
        Relationship(subject="horse.2", predicate="near", object="man.1"),
    )


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    file = _put(tmp_path, predicates=None)
    with pytest.raises(InvalidInputError, match="has no predicates"):
        converted(file, tmp_path / "out", with_images=False)
    _put(tmp_path)
    put(tmp_path / "image_data.json", [{"image_id": 10, "width": 64, "height": 48}])
    with pytest.raises(InvalidInputError, match=r"5 images, and .* about 1; .* different releases"):
        converted(file, tmp_path / "out", with_images=False)
    assert not list((tmp_path / "out").glob("*"))
    (tmp_path / vg150.NAMES_FILE).unlink()
    with pytest.raises(InvalidInputError, match=r"put VG-SGG-dicts-with-attri\.json there"):
        converted(file, tmp_path / "out", with_images=False)
    put(file, b"no HDF5")
    put(tmp_path / vg150.NAMES_FILE, {"idx_to_label": LABELS, "idx_to_predicate": PREDICATES})
    with pytest.raises(InvalidInputError, match="not readable HDF5"):
        converted(file, tmp_path / "out", with_images=False)


def _ids(folder: Path) -> dict[str, list[str]]:
    return {
        file.stem: [sample.image_id for sample in open_dataset(file)]
        for file in sorted(folder.glob("*.parquet"))
    }


def _converted(file: Path, name: str = "out") -> dict[str, list[str]]:
    converted(file, file.parent / name, image_folders=(file.parent / "pixels",))
    return _ids(file.parent / name)


def test_few_training_images_are_not_all_validation(tmp_path: Path) -> None:
    assert _converted(_put(tmp_path)) == {"train": ["10", "14"], "test": ["12"]}


def test_a_tenth_of_the_training_images_is_validation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vg150, "VALIDATION_SHARE", 0.5)
    assert _converted(_put(tmp_path)) == {"train": ["14"], "val": ["10"], "test": ["12"]}


def test_a_validation_split_of_the_file_is_kept(tmp_path: Path) -> None:
    split = [0, 0, 2, 0, 1]
    assert _converted(_put(tmp_path, split=split)) == {
        "train": ["10"],
        "val": ["14"],
        "test": ["12"],
    }


def test_without_splits_all_is_training(tmp_path: Path) -> None:
    assert _converted(_put(tmp_path, split=None)) == {"train": ["10", "12", "14"]}


def test_images_may_have_names_of_their_own(tmp_path: Path) -> None:
    file = _put(tmp_path)
    for item in SIZES:
        name = f"{item['image_id']}.jpg"
        (tmp_path / f"pixels/{name}").rename(tmp_path / f"pixels/img_{name}")
    named = [{**item, "file_name": f"img_{item['image_id']}.jpg"} for item in SIZES]
    put(tmp_path / "image_data.json", named)
    assert _converted(file) == {"train": ["10", "14"], "test": ["12"]}


def test_an_image_with_the_id_of_a_damaged_one_stays_where_the_arrays_have_it(
    tmp_path: Path,
) -> None:
    file = _put(tmp_path)
    own = [item for item in SIZES if item["image_id"] != 1592]
    put(tmp_path / "image_data.json", [{**own[0], "image_id": 1592}, *own[1:]])
    assert _converted(file) == {"train": ["1592", "14"], "test": ["12"]}


def test_boxes_may_have_another_scale_and_fractions(tmp_path: Path) -> None:
    boxes = [[256.5, 128, 256.5, 50], [32, 32, 64, 64]] * 4
    file = _put(tmp_path, boxes_1024=None)
    with h5py.File(file, "a") as written:
        written["boxes_512"] = np.array(boxes)
    _converted(file)
    graph = open_dataset(tmp_path / "out/test.parquet")[0].graph
    assert [item.bbox for item in graph.objects] == [(16.03, 12.88, 48.09, 19.12), (0, 0, 8, 8)]


@pytest.mark.parametrize(
    ("changes", "found", "wanted"),
    [
        ({"labels": [[1]] * 7}, "labels has 7 rows, boxes_1024 has 8", "one row each"),
        ({"predicates": [[1]] * 3}, "predicates has 3 rows, relationships has 4", "one row each"),
        ({"split": [0] * 4}, "split has 4 rows, img_to_first_box has 5", "one row each"),
        ({"img_to_last_rel": [0] * 3}, "img_to_last_rel has 3 rows, split has 5", "one row each"),
        (
            {"labels": [[0], [1]] * 4},
            r"labels\[0\] is 0, which has no name in idx_to_label .* \(1 to 2\)",
            "labels count from 1",
        ),
        (
            {"predicates": [[1], [3], [1], [1]]},
            r"predicates\[1\] is 3, which has no name in idx_to_predicate",
            "predicates count from 1",
        ),
        (
            {"relationships": [[0, 1], [0, 1], [1, 0], [0, 1]]},
            r"relationships\[1\] is \[0, 1\], and image 2 has boxes 2 to 3",
            "not within the image",
        ),
        (
            {"relationships": [[0, 9], [2, 3], [3, 2], [6, 7]]},
            r"relationships\[0\] is \[0, 9\], and image 0 has boxes 0 to 1",
            "over the whole file",
        ),
        (
            {"img_to_last_box": [1, -1, 3, 5, 8]},
            "image 4 has img_to_first_box 6 and img_to_last_box 8, and the file has 8",
            "the last one included",
        ),
        (
            {"img_to_first_box": [0, -1, 1, 4, 6]},
            "images 0 and 2 share entries: .* are 0, 1 and 1, 3",
            "over the whole file",
        ),
        (
            {"img_to_first_rel": [0, -1, 0, -1, 3]},
            "images 0 and 2 share entries: .* are 0, 0 and 0, 2",
            "over the whole file",
        ),
        ({"split": [0, 0, 7, 0, 0]}, r"split\[2\] is 7", r"0 \(training\), 1 .* or 2 \(test\)"),
        ({"boxes_1024": [[1, 2, 3]] * 8}, "boxes_1024 has 8 x 3 numbers", "4 a row are wanted"),
        ({"labels": [[1, 2]] * 8}, "labels has 8 x 2 numbers", "1 a row are wanted"),
        ({"split": 5}, "split has one number", "1 a row are wanted"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_before_anything_is_written(
    tmp_path: Path, changes: dict[str, Any], found: str, wanted: str
) -> None:
    file = _put(tmp_path, **changes)
    with pytest.raises(InvalidInputError, match=rf"\.h5: {found}.*; .*{wanted}.*docs/data.md"):
        converted(file, tmp_path / "out", with_images=False)
    assert not list((tmp_path / "out").glob("*"))


def test_a_box_that_is_no_number_is_named(tmp_path: Path) -> None:
    file = _put(tmp_path)
    with h5py.File(file, "r+") as written:
        boxes = written["boxes_1024"][()].astype(np.float32)
        boxes[3, 1] = np.nan
        del written["boxes_1024"]
        written["boxes_1024"] = boxes
    with pytest.raises(InvalidInputError, match=r"boxes_1024\[3\] is \[64.0, nan, .*finite"):
        converted(file, tmp_path / "out", with_images=False)


def test_boxes_of_an_image_without_length_are_no_boxes(tmp_path: Path) -> None:
    file = _put(tmp_path)
    with h5py.File(file, "r+") as written:
        written.move("boxes_1024", "boxes_0")
    with pytest.raises(InvalidInputError, match="it has no boxes_1024; it has boxes_0"):
        converted(file, tmp_path / "out", with_images=False)
