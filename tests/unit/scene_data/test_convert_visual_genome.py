from pathlib import Path
from typing import Any

import datasets
import pytest

from scene_data.dataset import open_dataset
from scene_graph.graph import Relationship, SceneObject
from services.errors import InvalidInputError
from tests.raw_annotations import converted, picture, put, put_vg, vg_object, vg_relationship

MAN, HORSE = vg_object(11, "man"), vg_object(12, "Horse ", x=30, y=5, w=30, h=40)
RIDING = vg_relationship(MAN, "riding", HORSE)


def _record(image_id: int, *relationships: Any) -> Any:
    return {"image_id": image_id, "relationships": list(relationships or (RIDING,))}


def _convert(folder: Path, **options: Any) -> Any:
    return converted(folder, folder / "out", image_folders=(folder / "pixels",), **options)


def test_raw_annotations_become_rows_that_are_read_back(tmp_path: Path) -> None:
    put_vg(tmp_path, _record(7), _record(8, RIDING, vg_relationship(HORSE, "near", MAN)))
    done = _convert(tmp_path)
    assert not done.tally.dropped
    first, second = open_dataset(tmp_path / "out/train.parquet")
    assert (first.image_id, first.width, first.height) == ("7", 64, 48)
    assert first.image_bytes == picture()
    assert first.graph.objects == (
        SceneObject(id="man.1", bbox=(1, 2, 21, 32)),
        SceneObject(id="horse.2", bbox=(30, 5, 60, 45)),
    )
    assert first.graph.relationships == (
        Relationship(subject="man.1", predicate="riding", object="horse.2"),
    )
    assert len(second.graph.relationships) == 2
    plain = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "out/train.parquet"), split="train"
    )
    assert plain[0]["image"].size == (64, 48)


def test_a_name_gives_up_its_dots(tmp_path: Path) -> None:
    """An id's name ends at the first one."""
    flag = vg_object(13, "u.s. flag")
    put_vg(tmp_path, _record(7, vg_relationship(MAN, "holding", flag)))
    _convert(tmp_path)
    (sample,) = open_dataset(tmp_path / "out/train.parquet")
    assert [item.id for item in sample.graph.objects] == ["man.1", "us flag.2"]
    assert [item.category for item in sample.graph.objects] == ["man", "us flag"]


def test_what_is_dropped_is_counted_by_reason(tmp_path: Path) -> None:
    outside = vg_object(13, "sky", x=60, y=0, w=30, h=10)
    beyond = vg_object(14, "sun", x=70, y=0, w=5, h=5)
    nameless = {**MAN, "object_id": 15, "name": None}
    unnumbered = {"name": "man"}
    records = (
        _record(
            1,
            RIDING,
            RIDING,
            vg_relationship(MAN, "under", outside),
            vg_relationship(MAN, "under", beyond),
            vg_relationship(nameless, "on", HORSE),
            vg_relationship(MAN, "on", unnumbered),
            vg_relationship(MAN, "on", MAN),
            {"subject": MAN, "object": HORSE},
            "no relationship",
        ),
        _record(2, vg_relationship(MAN, "on", MAN)),
    )
    put_vg(tmp_path, *records)
    done = _convert(tmp_path)
    assert done.tally.dropped == {
        "repeated_relationship": 1,
        "part_of_box_outside_image": 1,
        "empty_box": 1,
        "relationship_of_dropped_object": 1,
        "malformed_object": 4,
        "malformed_relationship": 4,
        "relationship_with_itself": 2,
    }
    assert done.tally.left_out == {"no relationship left": 1}
    (sample,) = open_dataset(tmp_path / "out/train.parquet")
    assert [item.id for item in sample.graph.objects] == ["man.1", "horse.2", "sky.3"]
    assert sample.graph.objects[2].bbox == (60, 0, 64, 10)


def test_broken_images_are_listed_and_left_out(tmp_path: Path) -> None:
    put_vg(tmp_path, *(_record(i) for i in range(1, 7)), _record(1), image_ids=(1, 2, 3, 4, 5))
    pixels = tmp_path / "pixels/VG_100K_2"
    (pixels / "2.jpg").unlink()
    put(pixels / "3.jpg", picture()[:-200])
    put(pixels / "4.jpg", picture(64, 50))
    done = _convert(tmp_path)
    assert done.tally.reasons == {
        "its image is in none of the folders": 1,
        "image is damaged": 1,
        "image has another size than its annotations say": 1,
        "not in image_data.json": 1,
        "image_id comes twice": 1,
    }
    assert "image 4: image has 64x50 pixels, its annotations say 64x48" in done.tally.broken
    kept = open_dataset(tmp_path / "out/train.parquet")
    assert [sample.image_id for sample in kept] == ["1", "5"]


def test_too_many_broken_images_leave_no_file(tmp_path: Path) -> None:
    put_vg(tmp_path, *(_record(i) for i in range(1, 9)), image_ids=(1, 2))
    with pytest.raises(InvalidInputError, match="too many broken images: of 8 images: 6 x not in"):
        _convert(tmp_path)
    assert not list((tmp_path / "out").glob("*"))


def test_a_file_that_breaks_off_leaves_no_file(tmp_path: Path) -> None:
    put_vg(tmp_path, _record(1), _record(2))
    whole = (tmp_path / "relationships.json").read_text()
    (tmp_path / "relationships.json").write_text(whole[:-20])
    with pytest.raises(InvalidInputError, match=r"relationships\.json: broken JSON after"):
        _convert(tmp_path)
    assert not list((tmp_path / "out").glob("*"))


def test_an_earlier_result_is_not_overwritten(tmp_path: Path) -> None:
    put_vg(tmp_path, _record(1))
    _convert(tmp_path)
    before = (tmp_path / "out/train.parquet").read_bytes()
    with pytest.raises(InvalidInputError, match="is there already"):
        _convert(tmp_path)
    assert (tmp_path / "out/train.parquet").read_bytes() == before


def test_objects_without_relationship_come_from_objects_json(tmp_path: Path) -> None:
    put_vg(tmp_path, _record(1))
    tree = {**vg_object(20, ""), "names": ["tree"], "merged_object_ids": [12]}
    put(tmp_path / "objects.json", [{"image_id": 1, "objects": [tree, MAN]}])
    (sample,) = (_convert(tmp_path), *open_dataset(tmp_path / "out"))[1:]
    assert [item.id for item in sample.graph.objects] == ["tree.1", "man.2"]
    assert sample.graph.relationships == (
        Relationship(subject="man.2", predicate="riding", object="tree.1"),
    )


@pytest.mark.parametrize(
    ("objects", "reason"),
    [([], "different numbers of images"), ([{"image_id": 2, "objects": []}], "one release")],
)
def test_objects_json_of_another_release_is_refused(
    tmp_path: Path, objects: Any, reason: str
) -> None:
    put_vg(tmp_path, _record(1))
    put(tmp_path / "objects.json", objects)
    with pytest.raises(InvalidInputError, match=reason):
        _convert(tmp_path)


def test_names_are_mapped_by_aliases_to_a_vocabulary(tmp_path: Path) -> None:
    pony, thing = vg_object(21, "The Pony!"), vg_object(22, "contraption")
    record = _record(
        1,
        vg_relationship(MAN, "is riding", pony),
        vg_relationship(MAN, "gazes at", pony),
        vg_relationship(MAN, "near", thing),
    )
    put_vg(tmp_path, record)
    (tmp_path / "objects.txt").write_text("horse,horses\nhorses,the pony\n")
    (tmp_path / "predicates.txt").write_text("riding,is riding,rides\n\n")
    done = _convert(
        tmp_path,
        vocabulary="vg150",
        object_aliases=tmp_path / "objects.txt",
        predicate_aliases=tmp_path / "predicates.txt",
    )
    assert done.tally.dropped == {
        "object_outside_vocabulary": 1,
        "predicate_outside_vocabulary": 1,
        "relationship_of_dropped_object": 1,
    }
    (sample,) = open_dataset(tmp_path / "out")
    assert sample.graph.relationships == (
        Relationship(subject="man.1", predicate="riding", object="horse.2"),
    )


def test_lists_of_image_ids_make_splits(tmp_path: Path) -> None:
    put_vg(tmp_path, *(_record(i) for i in (1, 2, 3)))
    done = _convert(tmp_path, splits={"1": "test", "3": "train"})
    assert {name: file.num_images for name, file in done.files.items()} == {"test": 1, "train": 1}
    assert done.tally.left_out == {"in no list of image ids": 1}
    assert open_dataset(tmp_path / "out/test.parquet")[0].image_id == "1"


def test_images_without_relationships_are_kept_for_detection(tmp_path: Path) -> None:
    put_vg(tmp_path, _record(1), _record(2, vg_relationship(MAN, "on", MAN)))
    _convert(tmp_path, keep_unrelated=True)
    path = tmp_path / "out/train.parquet"
    assert len(open_dataset(path)) == 2
    assert len(open_dataset(path, task="det")) == 2
    assert [sample.image_id for sample in open_dataset(path, task="sgg")] == ["1"]


def _scene_graph(image_id: int, **changes: Any) -> Any:
    record = {
        "image_id": image_id,
        "objects": [MAN, {**HORSE, "names": ["Horse "]}],
        "relationships": [{"predicate": "Riding", "subject_id": 11, "object_id": 12}],
    }
    return {**record, **changes}


def test_scene_graphs_have_objects_and_relationships_together(tmp_path: Path) -> None:
    dangling = {"predicate": "on", "subject_id": 11, "object_id": 99}
    edges = [*_scene_graph(7)["relationships"], dangling, {"predicate": "on"}]
    objects = [*_scene_graph(7)["objects"], HORSE]
    records = [
        _scene_graph(7, objects=objects, relationships=edges),
        _scene_graph(8, objects="none"),
    ]
    file = put(tmp_path / "scene_graphs.json", records)
    put(tmp_path / "image_data.json", [{"image_id": i, "width": 64, "height": 48} for i in (7, 8)])
    put(tmp_path / "images/7.jpg", picture())
    done = converted(file, tmp_path / "out", image_folders=(tmp_path,))
    (sample,) = open_dataset(tmp_path / "out/train.parquet")
    assert sample.graph.objects == (
        SceneObject(id="man.1", bbox=(1, 2, 21, 32)),
        SceneObject(id="horse.2", bbox=(30, 5, 60, 45)),
    )
    assert sample.graph.relationships == (
        Relationship(subject="man.1", predicate="riding", object="horse.2"),
    )
    assert done.tally.dropped == {
        "repeated_object": 1,
        "dangling_relationship": 1,
        "malformed_relationship": 1,
    }
    assert done.tally.broken == [
        "item 1 of scene_graphs.json (image 8): 'objects' is \"none\", and a list is wanted"
    ]


def test_without_image_data_sizes_are_those_of_the_images(tmp_path: Path) -> None:
    file = put(tmp_path / "scene_graphs.json", [_scene_graph(7)])
    put(tmp_path / "7.jpg", picture(50, 40))
    done = converted(file, tmp_path / "out", image_folders=(tmp_path,))
    (sample,) = open_dataset(tmp_path / "out/train.parquet")
    assert (sample.width, sample.height) == (50, 40)
    assert sample.graph.objects[1].bbox == (30, 5, 50, 40)
    assert done.tally.dropped == {"part_of_box_outside_image": 1}
