"""GQA's and Open Images' scene graphs."""

import csv
from pathlib import Path
from typing import Any

import pytest

from scene_data.dataset import open_dataset
from scene_graph.graph import Relationship, SceneObject
from services.errors import InvalidInputError
from tests.raw_annotations import converted, picture, put

GRAPH = (
    SceneObject(id="person.1", bbox=(1, 2, 31, 42)),
    SceneObject(id="horse.2", bbox=(20, 10, 60, 40)),
)
ON = Relationship(subject="person.1", predicate="on", object="horse.2")


def _gqa_objects(relations: Any) -> Any:
    person = {"name": "person", "x": 1, "y": 2, "w": 30, "h": 40, "attributes": ["tall"]}
    horse = {"name": "horse", "x": 20, "y": 10, "w": 40, "h": 30, "relations": []}
    return {"11": {**person, "relations": relations}, "12": horse}


def _gqa(folder: Path, *images: Any) -> Path:
    for number in range(len(images)):
        put(folder / f"images/{number}.jpg", picture())
    return put(folder / "val_sceneGraphs.json", {str(i): image for i, image in enumerate(images)})


def test_gqa_has_relations_inside_of_objects(tmp_path: Path) -> None:
    on = {"name": "on", "object": "12"}
    size = {"width": 64, "height": 48, "location": "street"}
    file = _gqa(
        tmp_path,
        {**size, "objects": _gqa_objects([on, {"name": "near", "object": "99"}, {"name": "at"}])},
        {**size, "objects": _gqa_objects({"5": on, "6": on})},
        {**size, "objects": {}},
        {**size, "objects": _gqa_objects([on]), "width": 0},
        {**size, "objects": {**_gqa_objects([on]), "13": {"name": "tree", "x": 1}}},
    )
    done = converted(file, tmp_path / "out", image_folders=(tmp_path,))
    samples = list(open_dataset(tmp_path / "out/val.parquet"))
    assert [sample.image_id for sample in samples] == ["0", "1", "4"]
    assert {sample.graph.objects for sample in samples} == {GRAPH}
    assert {sample.graph.relationships for sample in samples} == {(ON,)}
    assert done.tally.dropped == {
        "dangling_relationship": 1,
        "malformed_relationship": 1,
        "repeated_relationship": 1,
        "malformed_object": 1,
    }
    assert done.tally.left_out == {"no object left": 1}
    (broken,) = done.tally.broken
    assert broken.startswith("image 3: width x height is 0 x 48: whole numbers above 0 are wanted")


COLUMNS = [
    *("ImageID", "LabelName1", "LabelName2"),
    *("XMin1", "XMax1", "YMin1", "YMax1", "XMin2", "XMax2", "YMin2", "YMax2"),
    "RelationshipLabel",
]
PERSON, HORSE = ("0.1", "0.5", "0.25", "0.75"), ("0.25", "1", "0.5", "1.0")
IN_PIXELS = (
    SceneObject(id="person.1", bbox=(6.4, 12, 32, 36)),
    SceneObject(id="horse.2", bbox=(16, 24, 64, 48)),
)


def _csv(file: Path, *lines: Any, columns: Any = COLUMNS) -> Path:
    with file.open("w", encoding="utf-8-sig", newline="") as opened:
        csv.writer(opened).writerows([columns, *lines])
    (file.parent / "oidv6-class-descriptions.csv").write_text("/m/1,Person\n/m/2,Horse\n")
    for name in ("a", "b"):
        put(file.parent / f"{name}.jpg", picture())
    return file


def test_open_images_relations_are_put_together_by_image(tmp_path: Path) -> None:
    file = _csv(
        tmp_path / "oidv6-train-annotations-vrd.csv",
        ["a", "/m/1", "/m/2", *PERSON, *HORSE, "on"],
        ["b", "/m/2", "/m/1", *HORSE, *PERSON, "under"],
        ["a", "/m/1", "/m/2", *PERSON, *HORSE, "holds"],
        ["a", "/m/1", "/m/1", *PERSON, *PERSON, "is"],
        ["a", "/m/1", "/m/2", "x", *PERSON[1:], *HORSE, "on"],
    )
    done = converted(file, tmp_path / "out", image_folders=(tmp_path,))
    first, second = open_dataset(tmp_path / "out/train.parquet")
    assert (first.image_id, second.image_id) == ("a", "b")
    assert first.graph.objects == IN_PIXELS
    assert [edge.predicate for edge in first.graph.relationships] == ["on", "holds"]
    assert second.graph.relationships == (
        Relationship(subject="horse.1", predicate="under", object="person.2"),
    )
    assert done.tally.dropped == {"attribute": 1, "malformed_relationship": 1}


def test_open_images_early_column_and_names_without_a_description(tmp_path: Path) -> None:
    line = ["a", "Person", "Horse", *PERSON, *HORSE, "on"]
    early = [*COLUMNS[:-1], "RelationLabel"]
    file = _csv(tmp_path / "test-vrd.csv", line, columns=early)
    converted(file, tmp_path / "out", image_folders=(tmp_path,))
    (sample,) = open_dataset(tmp_path / "out/test.parquet")
    assert [item.category for item in sample.graph.objects] == ["Person", "Horse"]
    unknown = _csv(tmp_path / "vrd.csv", ["a", "/m/9", "/m/2", *PERSON, *HORSE, "on"])
    with pytest.raises(
        InvalidInputError, match=r"vrd.csv: label /m/9 has no name in a .*csv beside"
    ):
        converted(unknown, tmp_path / "none", image_folders=(tmp_path,))
    bare = _csv(tmp_path / "bare.csv", columns=COLUMNS[:4])
    with pytest.raises(
        InvalidInputError, match=r"its columns are ImageID, .*; YMin1, .* wanted too"
    ):
        converted(bare, tmp_path / "none")


def _packed(folder: Path, *changes: dict[str, Any]) -> Path:
    put(folder / "a.jpg", picture())
    put(folder / "categories_dict.json", {"obj": ["horse", "person"], "rel": ["at", "on"]})
    item = {
        "img_fn": "a",
        "img_size": [64, 48],
        "bbox": [[1, 2, 31, 42], [20, 10, 60, 40]],
        "det_labels": [1, 0],
        "rel": [[0, 1, 1]],
    }
    return put(folder / "vrd-val-anno.json", [{**item, **change} for change in changes])


def test_open_images_as_pysgg_packs_it(tmp_path: Path) -> None:
    wrong: list[dict[str, Any]] = [
        {"img_fn": "b", "det_labels": [1]},
        {"img_fn": "c", "rel": [[0, 1]]},
    ]
    done = converted(_packed(tmp_path, {}, *wrong), tmp_path / "out", image_folders=(tmp_path,))
    (sample,) = open_dataset(tmp_path / "out/val.parquet")
    assert sample.graph.objects == GRAPH
    assert sample.graph.relationships == (ON,)
    assert done.tally.broken == [
        "item 1: bbox has 2 entries, det_labels has 1",
        "item 2: rel has [0, 1], not [subject, object, predicate]",
    ]
    shifted = _packed(tmp_path, {"det_labels": [2, 1]})
    reason = r"anno.json, item 0: det_labels is 2, .* has 2 names; it counts from 0: 0 to 1"
    with pytest.raises(InvalidInputError, match=reason):
        converted(shifted, tmp_path / "none", image_folders=(tmp_path,))


def test_annotations_are_named_where_rows_are_wanted(tmp_path: Path) -> None:
    file = _packed(tmp_path, {})
    reason = (
        r"vrd-val-anno.json: it is Open Images as PySGG .*; `sgg-rl data convert .*vrd-val-anno"
    )
    for name in (file, tmp_path):
        with pytest.raises(InvalidInputError, match=reason):
            open_dataset(name)
    converted(tmp_path, tmp_path, image_folders=(tmp_path,))
    assert len(open_dataset(tmp_path)) == 1  # rows beside what they were made of
