import json
from collections import Counter
from pathlib import Path

import pytest

from scene_data.dataset import open_dataset
from scene_data.vocabulary import load_vocabulary, novel_names, training_vocabulary
from services.errors import InvalidInputError
from tests.raw_annotations import converted, picture, put, put_vg, vg_object, vg_relationship
from tests.shared_data import SHARED_DATA

VG = SHARED_DATA / "vg"
needs_vg = pytest.mark.skipif(not VG.is_dir(), reason="the Visual Genome sample is not here")


@needs_vg
def test_real_graphs_come_through_unchanged(tmp_path: Path) -> None:
    done = converted(VG, tmp_path)
    assert done.tally.left_out == {"row without an image": 45}
    before, after = list(open_dataset(VG)), list(open_dataset(tmp_path / "train.parquet"))
    assert [sample.image_bytes for sample in after] == [sample.image_bytes for sample in before]
    for old, new in zip(before, after, strict=True):
        assert new.graph.objects == old.graph.objects
        assert new.graph.relationships == tuple(
            edge for edge in old.graph.relationships if edge.subject != edge.object
        )


@needs_vg
def test_real_rows_bring_their_own_names_of_vg150(tmp_path: Path) -> None:
    converted(VG, tmp_path, vocabulary="vg150")
    rows = [row for row in json.loads((VG / "vg_sgg_49.json").read_text()) if row["image"]]
    expected: Counter[tuple[str, str, str]] = Counter()
    for row in rows:
        names = {item["id"]: item["vg150"] for item in row["objects"]}
        edges = {
            (edge["subject"], edge["vg150"], edge["object"])
            for edge in row["relationships"]
            if edge["subject"] != edge["object"]
        }
        expected.update(
            (names[s], predicate, names[o])
            for s, predicate, o in edges
            if None not in (names[s], predicate, names[o])
        )
    found: Counter[tuple[str, str, str]] = Counter()
    for sample in open_dataset(tmp_path / "train.parquet"):
        categories = {item.id: item.category for item in sample.graph.objects}
        found.update(
            (categories[edge.subject], edge.predicate, categories[edge.object])
            for edge in sample.graph.relationships
        )
    assert found == expected
    assert found.total() > 20


def _open_vocabulary_rows(folder: Path) -> Path:
    """Image 1 has base names only, 2 a novel object, 3 a novel predicate, 4 both in one."""
    rock, hill, dog = (vg_object(i, name) for i, name in enumerate(("rock", "hill", "dog")))
    base = vg_relationship(rock, "near", hill)
    put_vg(
        folder,
        {"image_id": 1, "relationships": [base]},
        {"image_id": 2, "relationships": [base, vg_relationship(dog, "near", hill)]},
        {"image_id": 3, "relationships": [vg_relationship(rock, "on", hill)]},
        {"image_id": 4, "relationships": [base, vg_relationship(dog, "on", hill)]},
    )
    converted(folder, folder / "all", image_folders=(folder / "pixels",))
    return folder / "all/train.parquet"


@pytest.mark.parametrize(
    ("setting", "image_ids", "dropped"),
    [
        ("ovd", "1234", {"object_with_novel_name": 2, "relationship_of_dropped_object": 2}),
        ("ovr", "124", {"novel_predicate": 2}),
        (
            "ovdr",
            "124",
            {
                "object_with_novel_name": 2,
                "relationship_of_dropped_object": 2,
                "novel_predicate": 1,
            },
        ),
    ],
)
def test_no_novel_name_is_left_and_no_image_without_relationship(
    tmp_path: Path, setting: str, image_ids: str, dropped: dict[str, int]
) -> None:
    done = converted(
        _open_vocabulary_rows(tmp_path),
        tmp_path / setting,
        open_vocabulary=setting,  # type: ignore[arg-type]
    )
    samples = list(open_dataset(tmp_path / setting / "train.parquet"))
    assert "".join(sample.image_id for sample in samples) == image_ids
    assert done.tally.dropped == dropped
    assert done.tally.left_out.total() == 4 - len(samples)
    objects = {item.category for sample in samples for item in sample.graph.objects}
    predicates = {edge.predicate for sample in samples for edge in sample.graph.relationships}
    allowed = training_vocabulary(setting)  # type: ignore[arg-type]
    assert objects <= set(allowed.objects)
    assert predicates <= set(allowed.predicates)
    assert ("dog" in objects) == (setting == "ovr")
    assert ("on" in predicates) == (setting == "ovd")


def test_ids_stay_where_no_name_changes(tmp_path: Path) -> None:
    source = _open_vocabulary_rows(tmp_path)
    converted(source, tmp_path / "ovd", open_vocabulary="ovd")
    second = open_dataset(tmp_path / "ovd/train.parquet")[1]
    assert [item.id for item in second.graph.objects] == ["rock.1", "hill.2"]


def test_novel_and_base_names_are_the_published_numbers() -> None:
    whole, base, novel = load_vocabulary("vg150"), training_vocabulary("ovdr"), novel_names()
    assert (len(base.objects), len(novel.objects)) == (105, 45)
    assert (len(base.predicates), len(novel.predicates)) == (35, 15)
    assert set(novel.objects) <= set(whole.objects)
    assert set(novel.predicates) <= set(whole.predicates)


def test_broken_rows_are_named_by_line(tmp_path: Path) -> None:
    put(tmp_path / "a.jpg", picture())
    objects = [{"id": "rock.1", "bbox": [1, 2, 3, 4]}, {"id": "hill.2", "bbox": [1, 2, 3, 4]}]
    edges = [{"subject": "rock.1", "predicate": "on", "object": "hill.2"}]
    row = {"image_id": "1", "image": "a.jpg", "objects": objects, "relationships": edges}
    lines = [json.dumps(row), '{"cut', json.dumps({**row, "image_id": "2", "image": "b.jpg"})]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    done = converted(tmp_path / "rows.jsonl", tmp_path / "out")
    assert done.files["rows"].num_images == 1
    assert done.tally.broken[0].startswith("line 2: not JSON")
    assert done.tally.broken[1].startswith("image 2: image cannot be read")


def test_a_folder_of_two_layouts_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "psg.json", {"thing_classes": []})
    put(tmp_path / "relationships.json", [])
    with pytest.raises(InvalidInputError, match=r"psg.json, relationships.json\); name one"):
        converted(tmp_path, tmp_path / "out")
