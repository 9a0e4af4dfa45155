from pathlib import Path
from typing import Any

import pytest

from scene_data.dataset import open_dataset
from scene_data.reading.layouts import named_split
from scene_graph.graph import Relationship, SceneObject
from services.errors import InvalidInputError
from tests.raw_annotations import converted, picture, put

GRAPH = (
    SceneObject(id="person.1", bbox=(1, 2, 31, 42)),
    SceneObject(id="horse.2", bbox=(20, 10, 60, 40)),
)
RIDES = Relationship(subject="person.1", predicate="rides", object="horse.2")


def _annotation(number: int, image: int, category: int, box: Any, **more: Any) -> Any:
    return {"id": number, "image_id": image, "category_id": category, "bbox": box, **more}


def _relation(subject: int, object_: int, image: int = 1, predicate: int = 4) -> Any:
    ids = {"subject_id": subject, "object_id": object_, "predicate_id": predicate}
    return {"id": 0, "image_id": image, **ids}


def _coco(folder: Path, name: str = "_annotations.coco.json", **changes: Any) -> Path:
    """Two images of which the second has the first annotations of the file."""
    for number in (1, 2):
        put(folder / f"{number}.jpg", picture())
    whole = {
        "info": {"year": 2026},
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 64, "height": 48} for i in (1, 2)],
        "annotations": [
            _annotation(10, 2, 7, [1, 2, 30, 40]),
            _annotation(11, 1, 7, [1, 2, 30, 40], iscrowd=0),
            _annotation(12, 1, 9, [20, 10, 40, 30]),
            _annotation(13, 2, 9, [20, 10, 40, 30]),
        ],
        "categories": [{"id": 7, "name": "person"}, {"id": 9, "name": "horse"}],
        "rel_categories": [{"id": 0, "name": "__background__"}, {"id": 4, "name": "rides"}],
        "rel_annotations": [_relation(10, 13, 2), _relation(11, 12)],
        **changes,
    }
    return put(folder / name, {key: value for key, value in whole.items() if value is not None})


def _graphs(file: Path, **options: Any) -> Any:
    done = converted(file, file.parent / "out", image_folders=(file.parent,), **options)
    samples = [
        (sample.image_id, sample.graph.objects, sample.graph.relationships)
        for written in sorted((file.parent / "out").glob("*.parquet"))
        for sample in open_dataset(written)
    ]
    return done, samples


def test_relations_name_annotations_by_id(tmp_path: Path) -> None:
    done, samples = _graphs(_coco(tmp_path))
    assert samples == [("1", GRAPH, (RIDES,)), ("2", GRAPH, (RIDES,))]
    assert not done.tally.dropped


def test_relations_without_an_image_are_those_of_their_subjects(tmp_path: Path) -> None:
    relations = [_relation(10, 13), _relation(11, 12), _relation(99, 12)]
    for relation in relations:
        del relation["image_id"]
    done, samples = _graphs(_coco(tmp_path, rel_annotations=relations))
    assert samples == [("1", GRAPH, (RIDES,)), ("2", GRAPH, (RIDES,))]
    assert done.tally.dropped == {"relationship_of_unknown_image": 1}


def test_sizes_may_be_those_of_the_images(tmp_path: Path) -> None:
    images = [{"id": 1, "file_name": "1.jpg"}, {"id": 2, "file_name": "2.jpg"}]
    _, samples = _graphs(_coco(tmp_path, images=images))
    assert samples == [("1", GRAPH, (RIDES,)), ("2", GRAPH, (RIDES,))]


@pytest.mark.parametrize(
    ("lists", "names", "predicate"),
    [
        ("relations", "rel_categories", "predicate_id"),
        ("relationships", "predicates", "category_id"),
        ("rel_annotations", "relation_categories", "relation_id"),
    ],
)
def test_lists_may_have_other_names(tmp_path: Path, lists: str, names: str, predicate: str) -> None:
    relation = {"image_id": 1, "subject_id": 11, "object_id": 12, predicate: 1}
    changes: dict[str, Any] = {"rel_annotations": None, "rel_categories": None}
    own = {lists: [relation], names: ["near", "rides"]}
    _, samples = _graphs(_coco(tmp_path, **{**changes, **own}))
    assert samples == [("1", GRAPH, (RIDES,))]


def test_places_in_place_of_ids_are_refused(tmp_path: Path) -> None:
    reason = (
        r"_annotations.coco.json: no image is left to write: of 2 images(.|\n)*"
        r"images\[0\] \(image 1\): subject_id of .* is the id of no annotation of the image, which "
        r"has \[11, 12\]: ids are wanted, not places in the list"
    )
    with pytest.raises(InvalidInputError, match=reason):
        _graphs(_coco(tmp_path, rel_annotations=[_relation(0, 1), _relation(0, 1, 2)]))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"categories": [{"id": 0, "name": "person"}, {"id": 1, "name": "horse"}]},
            r"category_id 7 has no name; an id of its categories is wanted: \[0, 1\]",
        ),
        ({"rel_categories": ["__background__", "on"]}, "predicate_id 4 has no name"),
        ({"rel_categories": None}, "'rel_categories' is missing; a list of names or of"),
        ({"categories": None}, "its members are info, images, .*; categories is wanted too"),
    ],
)
def test_numbers_without_a_name_are_refused(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(InvalidInputError, match=rf"coco.json.*: {reason}.*docs/data.md"):
        _graphs(_coco(tmp_path, **changes))
    assert not list((tmp_path / "out").glob("*"))


def test_what_has_no_use_is_counted(tmp_path: Path) -> None:
    annotations = [
        _annotation(11, 1, 7, [1, 2, 30, 40]),
        _annotation(12, 1, 9, None, segmentation=[[20, 10, 60, 10, 60, 40], [30, 20, 40, 40]]),
        _annotation(13, 1, 9, [0, 0, 64, 48], iscrowd=1),
        _annotation(14, 1, 9, [1, 2, 3]),
        _annotation(15, 99, 9, [1, 2, 30, 40]),
        {"id": 16, "category_id": 9, "bbox": [1, 2, 30, 40]},
    ]
    relations = [_relation(11, 12), _relation(11, 13), _relation(15, 15, 99)]
    done, samples = _graphs(_coco(tmp_path, annotations=annotations, rel_annotations=relations))
    assert samples == [("1", GRAPH, (RIDES,))]
    assert done.tally.dropped == {
        "crowd": 1,
        "malformed_object": 1,
        "dangling_relationship": 1,
        "annotation_of_unknown_image": 1,
        "relationship_of_unknown_image": 1,
        "item_without_image_id": 1,
    }
    assert done.tally.left_out == {"no object left": 1}


def test_objects_alone_are_kept_for_detection(tmp_path: Path) -> None:
    file = _coco(tmp_path, rel_annotations=None, rel_categories=None)
    with pytest.raises(InvalidInputError, match=r"2 x no relationship left .*--keep-unrelated"):
        _graphs(file)
    _, samples = _graphs(file, keep_unrelated=True)
    assert samples == [("1", GRAPH, ()), ("2", GRAPH, ())]


def _reltr(folder: Path, **changes: Any) -> Path:
    bare = {"rel_annotations": None, "rel_categories": None}
    _coco(folder, "train.json", **bare)
    image = {"id": 3, "file_name": "2.jpg", "width": 64, "height": 48}
    annotations = [_annotation(1, 3, 7, [1, 2, 30, 40]), _annotation(2, 3, 9, [20, 10, 40, 30])]
    for annotation in annotations:
        del annotation["id"]  # places are enough
    _coco(folder, "test.json", images=[image], annotations=annotations, **bare)
    lists = {
        "train": {"1": [[0, 1, 1]], "2": [[0, 1, 1], [1, 0, 2]]},
        "val": {},
        "test": {"3": [[1, 0, 2]]},
        "rel_categories": ["__background__", "rides", "under"],
    }
    return put(folder / "rel.json", {**lists, **changes})


def test_reltr_has_relations_in_a_file_of_their_own(tmp_path: Path) -> None:
    file = _reltr(tmp_path)
    done = converted(tmp_path, tmp_path / "out", image_folders=(tmp_path,))
    under = Relationship(subject="horse.2", predicate="under", object="person.1")
    train = open_dataset(tmp_path / "out/train.parquet")
    assert [sample.graph.objects for sample in train] == [GRAPH, GRAPH]
    assert [sample.graph.relationships for sample in train] == [(RIDES,), (RIDES, under)]
    (test,) = open_dataset(tmp_path / "out/test.parquet")
    assert test.graph.relationships == (under,)
    assert not done.tally.dropped
    assert converted(file, tmp_path / "again", with_images=False).files.keys() == {"train", "test"}
    alone = converted(tmp_path / "test.json", tmp_path / "alone", with_images=False)
    assert {name: part.num_images for name, part in alone.files.items()} == {"test": 1}


def test_a_relation_beyond_the_annotations_is_named(tmp_path: Path) -> None:
    _reltr(tmp_path, test={"3": [[0, 2, 1]]})
    with pytest.raises(
        InvalidInputError, match=r"relation \[0, 2, 1\] of rel.json is not .* 2 ann"
    ):
        converted(tmp_path / "test.json", tmp_path / "out", with_images=False)


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("instances_train2017.json", "train"),
        ("valid/_annotations.coco.json", "val"),
        ("challenge-2019-validation-vrd.csv", "val"),
        ("val_sceneGraphs.json", "val"),
        ("test/x.json", "test"),
        ("contest/trainers.json", "train"),
        ("x.json", "train"),
    ],
)
def test_splits_are_named_by_files_and_folders(path: str, split: str) -> None:
    assert named_split(Path(path)) == split


def test_an_id_of_two_categories_is_refused(tmp_path: Path) -> None:
    categories = [{"id": 1, "name": "man"}, {"id": 1, "name": "dog"}]
    with pytest.raises(InvalidInputError, match="categories has id 1 twice: 'man' and 'dog'"):
        converted(_coco(tmp_path, categories=categories), tmp_path / "out", with_images=False)
