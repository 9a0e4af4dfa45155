import io
import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from scene_data.dataset import MAX_BROKEN_ROWS, open_dataset
from scene_graph.graph import Relationship, SceneObject
from services.errors import InvalidInputError

VG = Path(__file__).parents[4] / "shared" / "data" / "vg"

OBJECTS = [
    {"id": "man.1", "bbox": [1, 2, 30, 40]},
    {"id": "traffic light.2", "bbox": [5.5, 6, 20, 21]},
]
RELATIONSHIPS = [{"subject": "man.1", "predicate": "near", "object": "traffic light.2"}]


def _png(width: int = 64, height: int = 48) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "teal").save(buffer, format="PNG")
    return buffer.getvalue()


def _row(number: int = 0, **changes: Any) -> dict[str, Any]:
    row = {
        "image_id": str(number),
        "image": {"bytes": _png(), "path": None},
        "objects": json.dumps(OBJECTS),
        "relationships": json.dumps(RELATIONSHIPS),
    }
    return {**row, **changes}


def _parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    datasets.Dataset.from_list(rows).to_parquet(path)
    return path


def _json_folder(folder: Path, rows: list[dict[str, Any]]) -> Path:
    (folder / "images").mkdir(parents=True)
    (folder / "images/a.png").write_bytes(_png())
    (folder / "graphs.json").write_text(json.dumps(rows))
    return folder


def _json_row(number: int, **changes: Any) -> dict[str, Any]:
    row = _row(number, image="images/a.png", objects=OBJECTS, relationships=RELATIONSHIPS)
    return {**row, **changes}


def test_a_parquet_row_becomes_a_sample(tmp_path: Path) -> None:
    sample = open_dataset(_parquet(tmp_path / "x.parquet", [_row(7)]))[0]
    assert (sample.image_id, sample.width, sample.height) == ("7", 64, 48)
    assert sample.image_bytes == _png()
    assert sample.graph.objects == (
        SceneObject(id="man.1", bbox=(1, 2, 30, 40)),
        SceneObject(id="traffic light.2", bbox=(5.5, 6, 20, 21)),
    )
    assert sample.graph.relationships == (
        Relationship(subject="man.1", predicate="near", object="traffic light.2"),
    )


def test_a_folder_of_shards_is_one_dataset(tmp_path: Path) -> None:
    _parquet(tmp_path / "train-00000-of-00002.parquet", [_row(0), _row(1)])
    _parquet(tmp_path / "train-00001-of-00002.parquet", [_row(2)])
    assert [s.image_id for s in open_dataset(tmp_path)] == ["0", "1", "2"]


def test_a_folder_of_several_splits_is_refused(tmp_path: Path) -> None:
    _parquet(tmp_path / "train.parquet", [_row(0)])
    _parquet(tmp_path / "heldout.parquet", [_row(1)])
    with pytest.raises(InvalidInputError, match="heldout, train"):
        open_dataset(tmp_path)


def test_a_saved_huggingface_dataset_with_decoded_images(tmp_path: Path) -> None:
    features = datasets.Features(
        {
            "image_id": datasets.Value("string"),
            "image": datasets.Image(),
            "objects": datasets.Value("string"),
            "relationships": datasets.Value("string"),
            "prompt_open": datasets.Value("string"),
        }
    )
    rows = [_row(4, prompt_open="unused")]
    datasets.Dataset.from_list(rows, features=features).save_to_disk(tmp_path / "saved")
    dataset = open_dataset(tmp_path / "saved")
    assert len(dataset) == 1
    assert dataset[0].image_bytes == _png()


def test_json_rows_without_image_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    rows = [_json_row(0), _json_row(1, image=None), _json_row(2)]
    dataset = open_dataset(_json_folder(tmp_path / "vg", rows))
    assert [sample.image_id for sample in dataset] == ["0", "2"]
    assert dataset[1].image_bytes == _png()
    assert "1 of 3 rows have no image" in caplog.text


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"objects": "[{"}, "objects is not JSON"),
        ({"objects": '{"a": 1}'}, "objects is not a list"),
        ({"relationships": None}, "relationships is not a list"),
        ({"objects": json.dumps([OBJECTS[0], OBJECTS[0]])}, "comes twice"),
        ({"objects": '[{"id": "a.1", "bbox": [1, 2, 3]}]'}, "not four numbers"),
        ({"objects": '[{"id": "a.1", "bbox": [1, 2, NaN, 4]}]'}, "not four numbers"),
        ({"objects": '[{"id": "a.1", "bbox": [1, 2, true, 4]}]'}, "not four numbers"),
        ({"objects": '[{"bbox": [1, 2, 3, 4]}]'}, "not a name"),
        ({"objects": "[]"}, "no object"),
    ],
)
def test_a_broken_row_is_skipped_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, changes: dict[str, Any], reason: str
) -> None:
    dataset = open_dataset(_parquet(tmp_path / "x.parquet", [_row(0), _row(1, **changes), _row(2)]))
    assert [sample.image_id for sample in dataset] == ["0", "2"]
    assert "row 1 (image 1)" in caplog.text
    assert reason in caplog.text


def test_too_many_broken_rows_are_an_error(tmp_path: Path) -> None:
    broken = [_row(i, objects="[]") for i in range(MAX_BROKEN_ROWS)]
    assert len(open_dataset(_parquet(tmp_path / "few.parquet", [_row(99), *broken]))) == 1
    path = _parquet(tmp_path / "many.parquet", [_row(99), *broken, _row(98, objects="[]")])
    with pytest.raises(InvalidInputError, match="6 of 7 rows are broken"):
        open_dataset(path)


def test_parts_that_cannot_be_used_are_dropped_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    objects = [*OBJECTS, {"id": "line.3", "bbox": [4, 4, 4, 9]}]
    relationships = [
        *RELATIONSHIPS,
        *RELATIONSHIPS,
        {"subject": "line.3", "predicate": "on", "object": "man.1"},
    ]
    row = _json_row(0, objects=objects, relationships=relationships)
    graph = open_dataset(_json_folder(tmp_path / "vg", [row]))[0].graph
    assert [item.id for item in graph.objects] == ["man.1", "traffic light.2"]
    assert len(graph.relationships) == 1
    for reason in ("empty_box", "dangling_relationship", "repeated_relationship"):
        assert f"'{reason}': 1" in caplog.text


def test_an_unreadable_image_says_which(tmp_path: Path) -> None:
    rows = [_row(5, image={"bytes": b"no picture", "path": None})]
    dataset = open_dataset(_parquet(tmp_path / "x.parquet", rows))
    with pytest.raises(InvalidInputError, match="image 5 is not readable"):
        dataset[0]
    missing = open_dataset(_json_folder(tmp_path / "vg", [_json_row(6, image="images/b.png")]))
    with pytest.raises(InvalidInputError, match="image 6 is not readable"):
        missing[0]


def test_what_is_no_dataset_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 but no more")
    (tmp_path / "bad.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    _parquet(tmp_path / "columns.parquet", [{"image_id": "1", "image": None}])
    for name, reason in [
        ("missing.parquet", "is not a dataset"),
        ("bad.parquet", "not readable parquet"),
        ("bad.json", "is not the JSON that was expected"),
        ("empty", "neither parquet files"),
        ("columns.parquet", "no column objects, relationships"),
    ]:
        with pytest.raises(InvalidInputError, match=reason):
            open_dataset(tmp_path / name)


@pytest.mark.skipif(not VG.is_dir(), reason="the Visual Genome sample is not here")
def test_real_visual_genome_graphs() -> None:
    dataset = open_dataset(VG)
    assert [sample.image_id for sample in dataset] == ["1", "2", "4", "5"]
    assert sum(len(sample.graph.objects) for sample in dataset) == 88
    for sample in dataset:
        boxes = [item.bbox for item in sample.graph.objects]
        assert max(box[2] for box in boxes) <= sample.width
        assert max(box[3] for box in boxes) <= sample.height


def test_thinking_is_read_from_the_column_that_is_named(tmp_path: Path) -> None:
    rows = [_row(why=" A man. ", thinking="other")]
    path = _parquet(tmp_path / "x.parquet", rows)
    assert open_dataset(path, thinking_column="why")[0].thinking == "A man."
    assert open_dataset(path)[0].thinking is None
    with pytest.raises(InvalidInputError, match=r"no column reason; it has .*sft.thinking_column"):
        open_dataset(path, thinking_column="reason")
    folder = _json_folder(tmp_path / "json", [_json_row(0, why="Yes.")])
    assert open_dataset(folder, thinking_column="why")[0].thinking == "Yes."
    with pytest.raises(InvalidInputError, match="column 'reason' has no text"):
        open_dataset(folder, thinking_column="reason")
