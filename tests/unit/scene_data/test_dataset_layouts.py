import io
import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from scene_data.dataset import MAX_BROKEN_ROWS, open_dataset
from scene_graph.graph import Relationship, SceneObject
from services.errors import InvalidInputError
from services.host.environment import child_environment
from tests.shared_data import SHARED_DATA

VG = SHARED_DATA / "vg"

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
    with pytest.raises(InvalidInputError, match=r"none of its 2 rows names an image \(`image`\);"):
        open_dataset(_json_folder(tmp_path / "none", [_json_row(n, image=None) for n in (0, 1)]))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"objects": "[{"}, "objects is not JSON"),
        ({"objects": "[" * 100_000}, "objects is not JSON"),
        ({"objects": '{"a": 1}'}, "objects is not a list"),
        ({"relationships": None}, "relationships is not a list"),
        ({"objects": json.dumps([OBJECTS[0], OBJECTS[0]])}, "comes twice"),
        ({"objects": '[{"id": "a.1", "bbox": [1, 2, 3]}]'}, "not four numbers"),
        ({"objects": '[{"id": "a.1", "bbox": [1, 2, NaN, 4]}]'}, "not four numbers"),
        ({"objects": '[{"id": "a.1", "bbox": [1, 2, true, 4]}]'}, "not four numbers"),
        ({"objects": f'[{{"id": "a.1", "bbox": [1, 2, 1{"0" * 400}, 4]}}]'}, "not four numbers"),
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
    with pytest.raises(InvalidInputError, match=r"x\.parquet, row 0 \(image 5\): not an image"):
        dataset[0]
    missing = open_dataset(_json_folder(tmp_path / "vg", [_json_row(6, image="images/b.png")]))
    with pytest.raises(
        InvalidInputError, match=r"row 0 \(image 6\): image cannot be read: .*No such file"
    ):
        missing[0]


def test_what_is_no_dataset_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 but no more")
    (tmp_path / "bad.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    _parquet(tmp_path / "columns.parquet", [{"image_id": "1", "image": None}])
    for name, reason in [
        ("missing.parquet", "is not a dataset"),
        ("bad.parquet", "not readable parquet"),
        ("bad.json", r"members \(none\); a list of rows is wanted, or one of: VG150"),
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


def _jsonl(folder: Path, *lines: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "a.png").write_bytes(_png())
    (folder / "rows.jsonl").write_text("\n".join(lines))
    return folder / "rows.jsonl"


def test_json_lines_with_lists_or_texts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lists = _json_row(0, image="a.png", width=64, height=48)
    lines = [json.dumps(lists), "", json.dumps(_row(1, image="a.png")), '{"image_id', "[]"]
    path = _jsonl(tmp_path / "lines", *lines)
    first, second = open_dataset(path)
    assert (first.image_id, second.image_id) == ("0", "1")
    assert first.graph == second.graph
    assert first.image_bytes == _png()
    assert "line 4 (image None): not JSON" in caplog.text
    assert "line 5 (image None): not a JSON object" in caplog.text
    assert len(open_dataset(path.parent)) == 2


def test_threads_read_their_own_rows(tmp_path: Path) -> None:
    rows = [json.dumps(_json_row(i, image="a.png", note="x" * i)) for i in range(200)]
    dataset = open_dataset(_jsonl(tmp_path, *rows))
    with ThreadPoolExecutor(8) as pool:
        samples = list(pool.map(dataset.__getitem__, range(200)))
    assert [sample.image_id for sample in samples] == [str(i) for i in range(200)]


def test_rows_without_relationship_are_left_out_for_tasks_that_need_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = _parquet(tmp_path / "x.parquet", [_row(0), _row(1, relationships="[]"), _row(2)])
    assert [s.image_id for s in open_dataset(path, task="sgg")] == ["0", "2"]
    assert "1 of 3 rows have no relationship and are left out: sgg needs one" in caplog.text
    assert len(open_dataset(path, task="cls")) == 2
    assert len(open_dataset(path, task="det")) == 3
    assert len(open_dataset(path)) == 3
    bare = _parquet(tmp_path / "bare.parquet", [_row(1, relationships="[]")])
    with pytest.raises(InvalidInputError, match="1 of 1 rows have no relationship, which sgg"):
        open_dataset(bare, task="sgg")


@pytest.mark.parametrize("name", ["data/nope.parquet", "data/nope.jsonl", "vg/scene_graphs.json"])
def test_a_file_that_is_not_there_is_no_name_of_the_hub(name: str) -> None:
    with pytest.raises(InvalidInputError, match=f"{name} is not a dataset: nothing there"):
        open_dataset(name)


def test_a_hub_name_is_read_from_the_local_cache_without_network(tmp_path: Path) -> None:
    path = _parquet(tmp_path / "x.parquet", [_row(0), _row(1)])
    made = datasets.load_dataset(
        "parquet", data_files=str(path), cache_dir=str(tmp_path / "made"), split="train"
    )
    arrow = Path(made.cache_files[0]["filename"])
    cached = tmp_path / "cache/owner___graphs/default/0.0.0" / ("0" * 40)
    cached.mkdir(parents=True)
    shutil.copy(arrow, cached / "graphs-train.arrow")
    shutil.copy(arrow.parent / "dataset_info.json", cached)
    code = """
from scene_data.dataset import open_dataset
for name in ("owner/graphs", "owner/graphs:train"):
    print([sample.image_id for sample in open_dataset(name)])
open_dataset("owner/other")
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=child_environment(HF_DATASETS_CACHE=str(tmp_path / "cache"), HF_HUB_OFFLINE="1"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines() == ["['0', '1']"] * 2, done.stderr
    assert "owner/other is neither a local path nor a dataset that the hub gave" in done.stderr


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


def test_folders_of_a_repository_are_named(tmp_path: Path) -> None:
    (tmp_path / "hub/data").mkdir(parents=True)
    _parquet(tmp_path / "hub/data/train-00000-of-00001.parquet", [_row()])
    with pytest.raises(
        InvalidInputError, match=r"one of the folders with parquet files, .*hub/data"
    ):
        open_dataset(str(tmp_path / "hub"))
