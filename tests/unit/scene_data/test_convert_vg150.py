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


def _put(folder: Path, **changes: Any) -> Path:
    """The three files, and a 64 x 48 image for each image."""
    arrays: dict[str, list[Any]] = {name: [] for name in vg150._ARRAYS}
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
    sizes = [{"image_id": i, "width": 64, "height": 48} for i, *_ in IMAGES]
    put(folder / "image_data.json", sizes)
    return file


@pytest.fixture(autouse=True)
def _one_validation_image(monkeypatch: pytest.MonkeyPatch) -> None:
    assert vg150.NUM_VALIDATION == 5000
    monkeypatch.setattr(vg150, "NUM_VALIDATION", 1)


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
    with pytest.raises(InvalidInputError, match=r"5 images and .* about 1: .* different releases"):
        converted(file, tmp_path / "out", with_images=False)
    assert not list((tmp_path / "out").glob("*"))
    (tmp_path / vg150.NAMES_FILE).unlink()
    with pytest.raises(InvalidInputError, match="put it beside VG-SGG"):
        converted(file, tmp_path / "out", with_images=False)
    put(file, b"no HDF5")
    put(tmp_path / vg150.NAMES_FILE, {})
    with pytest.raises(InvalidInputError, match="not readable HDF5"):
        converted(file, tmp_path / "out", with_images=False)
