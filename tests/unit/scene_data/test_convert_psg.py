import json
from pathlib import Path
from typing import Any

import pytest

from scene_data.dataset import open_dataset
from scene_graph.graph import Relationship, SceneObject
from services.errors import InvalidInputError
from tests.raw_annotations import converted, picture, put


def _annotation(box: Any, category: Any, mode: int = 0) -> Any:
    return {"bbox": box, "bbox_mode": mode, "category_id": category}


def _image(image_id: str, annotations: Any, relations: Any, **changes: Any) -> Any:
    return {
        "image_id": image_id,
        "file_name": f"train2017/{image_id}.jpg",
        "pan_seg_file_name": "unused.png",
        "width": 64,
        "height": 48,
        "segments_info": [],
        "annotations": annotations,
        "relations": relations,
        **changes,
    }


def _psg(folder: Path, *images: Any, **changes: Any) -> Path:
    for image in images:
        put(folder / "coco" / str(image["file_name"]), picture())
    whole = {
        "data": images,
        "thing_classes": ["person", "horse"],
        "stuff_classes": ["grass-merged"],
        "predicate_classes": ["on", "riding"],
        "test_image_ids": ["2"],
        **changes,
    }
    return put(folder / "psg.json", whole)


def _convert(folder: Path, **options: Any) -> Any:
    return converted(folder, folder / "out", image_folders=(folder / "coco",), **options)


def test_train_and_test_are_those_of_the_file(tmp_path: Path) -> None:
    annotations = [
        _annotation([1, 2, 30, 40], 0),
        _annotation([5, 6, 20, 21], 1, mode=1),
        _annotation([0, 30, 64, 48], 2),
    ]
    relations = [[0, 1, 1], [1, 2, 0], [0, 1, 1]]
    _psg(tmp_path, *(_image(name, annotations, relations) for name in "123"))
    done = _convert(tmp_path, vocabulary="psg")
    assert {name: file.num_images for name, file in done.files.items()} == {"train": 2, "test": 1}
    assert done.tally.dropped == {"repeated_relationship": 3}
    (sample,) = open_dataset(tmp_path / "out/test.parquet")
    assert sample.image_id == "2"
    assert sample.graph.objects == (
        SceneObject(id="person.1", bbox=(1, 2, 30, 40)),
        SceneObject(id="horse.2", bbox=(5, 6, 25, 27)),
        SceneObject(id="grass-merged.3", bbox=(0, 30, 64, 48)),
    )
    assert sample.graph.relationships == (
        Relationship(subject="person.1", predicate="riding", object="horse.2"),
        Relationship(subject="horse.2", predicate="on", object="grass-merged.3"),
    )


def test_every_kind_of_fault_is_counted(tmp_path: Path) -> None:
    good = [_annotation([1, 2, 30, 40], 0), _annotation([5, 6, 20, 21], 1)]
    faulty = [
        *good,
        _annotation([1, 2, 3], 0),
        _annotation([1, 2, 30, "40"], 0),
        _annotation([1, 2, 30, 40], "0"),
        _annotation([1, 2, 30, 40], None),
        _annotation([1, 2, 30, 40], 0, mode=4),
        "no annotation",
        _annotation([1, float("nan"), 30, 40], 0),
        _annotation([9, 9, 9, 30], 0),
    ]
    relations = [[0, 1, 1], None, [0, 1], [0, 2, 0], [0, 9, 0], [0, 99, 0], ["0", 1, 1]]
    _psg(
        tmp_path,
        _image("1", faulty, relations),
        _image("3", good, [[0, 1, 1]], width=None),
        _image("4", None, []),
        _image("5", good, "none"),
        _image("6", good, []),
    )
    done = _convert(tmp_path)
    assert done.tally.dropped == {
        "malformed_object": 7,
        "malformed_relationship": 3,
        "empty_box": 1,
        "dangling_relationship": 2,
        "relationship_of_dropped_object": 1,
    }
    assert done.tally.left_out == {"no relationship left": 1}
    assert [line.partition(":")[0] for line in done.tally.broken] == [
        "data[1] (image 3)",
        "data[2] (image 4)",
        "data[3] (image 5)",
    ]
    assert done.files["train"].num_images == 1


def test_what_is_not_psg_is_refused(tmp_path: Path) -> None:
    file = _psg(tmp_path, predicate_classes=None)
    with pytest.raises(InvalidInputError, match="'predicate_classes'"):
        _convert(tmp_path)
    file.write_text("{1}")
    with pytest.raises(InvalidInputError, match="broken JSON after character 1"):
        _convert(tmp_path)


@pytest.mark.parametrize(
    ("category", "predicate", "found"),
    [
        (3, 1, r"category_id is 3, and thing_classes \+ stuff_classes has 3 names"),
        (-1, 1, "category_id is -1, .* 3 names"),
        (0, 2, "a relation's predicate is 2, and predicate_classes has 2 names"),
    ],
)
def test_numbers_that_do_not_count_from_0_are_refused(
    tmp_path: Path, category: int, predicate: int, found: str
) -> None:
    annotations = [_annotation([1, 2, 30, 40], category), _annotation([5, 6, 20, 21], 1)]
    _psg(tmp_path, _image("7", annotations, [[0, 1, predicate]]))
    reason = rf"psg.json, data\[0\] \(image 7\): {found}; it counts from 0: 0 to \d are wanted"
    with pytest.raises(InvalidInputError, match=reason):
        _convert(tmp_path)
    assert not list((tmp_path / "out").glob("*"))


def test_images_without_relations_and_lists_that_own_datasets_leave_out(tmp_path: Path) -> None:
    annotations = [_annotation([1, 2, 30, 40], 0), _annotation([5, 6, 20, 21], 1)]
    bare = [_image(str(i), annotations, []) for i in range(10, 17)]
    for image in bare:
        del image["relations"]
    file = _psg(tmp_path, _image("2", annotations, [[0, 1, 1]]), *bare)
    whole = json.loads(file.read_text())
    del whole["test_image_ids"], whole["stuff_classes"]
    own = put(tmp_path / "own.json", whole)
    file.unlink()
    done = converted(own, tmp_path / "out", image_folders=(tmp_path / "coco",))
    assert {name: part.num_images for name, part in done.files.items()} == {"train": 1}
    assert done.tally.left_out == {"no relationship left": 7}
    assert done.num_seen == 8
    done = _convert(tmp_path, keep_unrelated=True, with_images=False)
    assert done.files["train"].num_images == 8


def test_annotations_alone_are_json_lines(tmp_path: Path) -> None:
    annotations = [_annotation([1, 2, 30, 40], 0), _annotation([5, 6, 20, 21], 1)]
    _psg(tmp_path, _image("2", annotations, [[0, 1, 1]]))
    converted(tmp_path, tmp_path / "out", with_images=False)
    (line,) = (tmp_path / "out/test.jsonl").read_text().splitlines()
    assert json.loads(line) == {
        "image_id": "2",
        "width": 64,
        "height": 48,
        "objects": [
            {"id": "person.1", "bbox": [1, 2, 30, 40]},
            {"id": "horse.2", "bbox": [5, 6, 20, 21]},
        ],
        "relationships": [{"subject": "person.1", "predicate": "riding", "object": "horse.2"}],
    }
