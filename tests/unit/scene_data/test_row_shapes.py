"""Rows as other tools write them."""

import codecs
import json
import os
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from cli.commands.prepare.data import _splits
from scene_data.conversion.convert import ConversionOptions
from scene_data.dataset import open_dataset
from scene_data.inspection import Inspector
from scene_data.reading.sources import open_rows
from scene_graph.graph import Relationship, SceneObject
from services.errors import InvalidInputError, SettingsError
from tests.raw_annotations import converted, picture, put

OBJECTS = [{"id": "man.1", "bbox": [1, 2, 30, 40]}, {"id": "horse.2", "bbox": [5, 6, 20, 21]}]
EDGES = [{"subject": "man.1", "predicate": "on", "object": "horse.2"}]
COLUMNS = {
    "objects": {"id": ["man.1", "horse.2"], "bbox": [[1, 2, 30, 40], [5, 6, 20, 21]]},
    "relationships": {"subject": ["man.1"], "predicate": ["on"], "object": ["horse.2"]},
}
GRAPH = (
    SceneObject(id="man.1", bbox=(1, 2, 30, 40)),
    SceneObject(id="horse.2", bbox=(5, 6, 20, 21)),
)
ON = Relationship(subject="man.1", predicate="on", object="horse.2")


def _row(**changes: Any) -> dict[str, Any]:
    row = {"image_id": "1", "image": "a.jpg", "objects": OBJECTS, "relationships": EDGES}
    return {**row, **changes}


def _put(folder: Path, *rows: Any, name: str = "rows.jsonl") -> Path:
    put(folder / "a.jpg", picture())
    put(folder / "images/b.jpg", picture(80, 60))
    lines = "\n".join(json.dumps(row) for row in rows).encode()
    return put(folder / name, lines)


def _read(path: Path) -> list[tuple[str, bytes]]:
    """Ids and images of a dataset in which every row has the same graph.

    Training, inspection and conversion have to agree on what can be read.
    """
    dataset = open_dataset(path)
    for sample in dataset:
        assert (sample.graph.objects, sample.graph.relationships) == (GRAPH, (ON,))
    found = Inspector(open_rows(str(path), need_images=False), check_images=True).run()
    assert (found.num_usable, found.num_broken) == (len(dataset), 0)
    done = converted(path, path.parent / "converted")
    assert sum(file.num_images for file in done.files.values()) == len(dataset)
    return [(sample.image_id, sample.image_bytes) for sample in dataset]


def _refused(path: Path, reason: str) -> None:
    """All three say the same of the first row."""
    with pytest.raises(InvalidInputError, match=reason) as found:
        open_dataset(path)
    assert str(path) in found.value.message
    assert "docs/data.md" in found.value.message
    inspected = Inspector(open_rows(str(path), need_images=False)).run()
    assert (inspected.num_usable, inspected.num_broken) == (0, 1)
    with pytest.raises(InvalidInputError, match=reason):
        converted(path, path.parent / "converted")


def test_objects_of_lists_are_lists_of_objects(tmp_path: Path) -> None:
    texts = {key: json.dumps(value) for key, value in COLUMNS.items()}
    file = _put(tmp_path, _row(**COLUMNS), _row(image_id="2", **texts))
    assert _read(file) == [("1", picture()), ("2", picture())]
    features = datasets.Features(
        {
            "image_id": datasets.Value("string"),
            "image": datasets.Image(),
            "objects": {
                "id": datasets.List(datasets.Value("string")),
                "bbox": datasets.List(datasets.List(datasets.Value("float32"), length=4)),
            },
            "relationships": {
                key: datasets.List(datasets.Value("string"))
                for key in ("subject", "predicate", "object")
            },
        }
    )
    row = _row(**COLUMNS, image={"bytes": picture(), "path": None})
    table = datasets.Dataset.from_list([row], features=features)
    table.to_parquet(tmp_path / "x/train.parquet")
    assert _read(tmp_path / "x/train.parquet") == [("1", picture())]


def test_lists_of_different_lengths_are_named(tmp_path: Path) -> None:
    lists = {"id": ["man.1"], "bbox": [[1, 2, 3, 4], [1, 2, 3, 4]]}
    file = _put(tmp_path, _row(objects=lists))
    _refused(file, r'line 1.*: objects is not .* of one length: {"id": 1, "bbox": 2}')


def test_paths_in_parquet_count_from_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _put(tmp_path)
    rows = [_row(image="images/b.jpg"), _row(image_id="2", image=str(tmp_path / "a.jpg"))]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "train.parquet")
    monkeypatch.chdir("/")
    assert _read(tmp_path / "train.parquet") == [("1", picture(80, 60)), ("2", picture())]
    structs = [_row(image={"bytes": None, "path": "images/b.jpg"})]
    datasets.Dataset.from_list(structs).to_parquet(tmp_path / "structs.parquet")
    assert _read(tmp_path / "structs.parquet") == [("1", picture(80, 60))]


@pytest.mark.parametrize("kind", ["numpy", "pandas", "torch"])
def test_a_saved_format_does_not_change_rows(tmp_path: Path, kind: str) -> None:
    row = _row(image={"bytes": picture(), "path": None}, width=64, height=48)
    table = datasets.Dataset.from_list([row]).with_format(kind)
    table.save_to_disk(tmp_path / "saved")
    assert _read(tmp_path / "saved") == [("1", picture())]


def test_boxes_of_numpy_are_boxes(tmp_path: Path) -> None:
    objects = [{**item, "bbox": np.array(item["bbox"], dtype=np.int32)} for item in OBJECTS]
    row = _row(image={"bytes": picture(), "path": None}, objects=objects, width=np.int64(64))
    table = datasets.Dataset.from_list([{**row, "height": np.int64(48)}])
    table.to_parquet(tmp_path / "train.parquet")
    assert _read(tmp_path / "train.parquet") == [("1", picture())]


@pytest.mark.parametrize(
    ("image", "found"),
    [
        ([{"bytes": picture(), "path": None}], "image is a list; one image a row"),
        (["a.jpg", "b.jpg"], "image is a list; one image a row"),
        (7, r"image is Value\('int64'\); one image a row: its bytes, a path"),
    ],
)
def test_an_image_of_another_kind_is_refused(tmp_path: Path, image: Any, found: str) -> None:
    datasets.Dataset.from_list([_row(image=image)]).to_parquet(tmp_path / "train.parquet")
    for opened in (open_dataset, open_rows):
        with pytest.raises(InvalidInputError, match=rf"train.parquet: {found}"):
            opened(str(tmp_path / "train.parquet"))


def test_images_may_be_a_list_of_one(tmp_path: Path) -> None:
    row = _row(images=[{"bytes": picture(), "path": None}])
    del row["image"]
    datasets.Dataset.from_list([row]).to_parquet(tmp_path / "train.parquet")
    assert _read(tmp_path / "train.parquet") == [("1", picture())]
    rows = [row, {**row, "images": row["images"] * 2}]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "two.parquet")
    reason = r"two.parquet, row 1: images is a list of 2; one image a row"
    with pytest.raises(InvalidInputError, match=reason):
        open_rows(str(tmp_path / "two.parquet"))
    datasets.Dataset.from_list([{**row, "images": 5}]).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(
        InvalidInputError, match=r"x.parquet: images is Value\('int64'\); one image"
    ):
        open_rows(str(tmp_path / "x.parquet"))


def test_json_with_several_images_a_row_is_refused(tmp_path: Path) -> None:
    _refused(
        _put(tmp_path, _row(image=["a.jpg", "b.jpg"])), "image is a list of 2: one image a row"
    )


def test_saved_splits_are_named(tmp_path: Path) -> None:
    row = _row(image={"bytes": picture(), "path": None})
    table = datasets.Dataset.from_list([row])
    datasets.DatasetDict({"train": table, "test": table}).save_to_disk(tmp_path / "saved")
    with pytest.raises(InvalidInputError, match="with the splits test, train; name the folder of"):
        open_dataset(tmp_path / "saved")
    assert len(open_dataset(tmp_path / "saved/test")) == 1


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
@pytest.mark.parametrize("shape", ["lines", "windows", "list", "pretty", "pretty list"])
def test_json_is_read_in_any_shape(tmp_path: Path, name: str, mark: bytes, shape: str) -> None:
    file = _put(tmp_path, name=name)
    rows = [_row(note="男人"), _row(image_id=2, note="\n")]
    indent = 1 if "pretty" in shape else None
    texts = [json.dumps(row, indent=indent, ensure_ascii=False) for row in rows]
    whole = json.dumps(rows, indent=indent) if "list" in shape else "\n".join(texts)
    ends = "\r\n" if shape == "windows" else "\n"
    file.write_bytes(mark + whole.replace("\n", ends).encode())
    assert [image_id for image_id, _ in _read(file)] == ["1", "2"]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_text_that_is_no_utf8_says_so(tmp_path: Path, name: str) -> None:
    file = _put(tmp_path, name=name)
    text = json.dumps([_row(note="男人")] if name.endswith("json") else _row(), ensure_ascii=False)
    file.write_text(text, encoding="utf-16")
    with pytest.raises(
        InvalidInputError, match=rf"{name}: UTF-16 or UTF-32 text; save it as UTF-8"
    ):
        open_dataset(file)
    file.write_text(json.dumps([_row(note="男人")], ensure_ascii=False), encoding="gbk")
    with pytest.raises(InvalidInputError, match=rf"{name}: not UTF-8 text .*; save it as UTF-8"):
        open_dataset(file)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"data": [1], "info": {}}, r"an object with the members data, info; a list of rows is"),
        ({"0": {"a": [1]}}, r"the members 0; a list of rows is wanted, or one of: VG150 in HDF5"),
        ({str(i): i for i in range(50)}, r"members 0, 1, .*, 11, …; a list"),
    ],
)
def test_unknown_json_is_refused_with_its_members(
    tmp_path: Path, content: Any, reason: str
) -> None:
    file = put(tmp_path / "x.json", content)
    for opened in (open_dataset, open_rows, lambda name: converted(name, tmp_path / "out")):
        with pytest.raises(InvalidInputError, match=rf"x.json: .*{reason}.*docs/data.md"):
            opened(str(file))


@pytest.mark.parametrize(
    ("changes", "size"),
    [
        ({"width": 64, "height": 48}, (64, 48)),
        ({"width": 64.0, "height": "48"}, (64, 48)),
        ({"width": None, "height": None}, (64, 48)),
        ({"image_id": 1}, (64, 48)),
        ({"image_id": 1.0}, (64, 48)),
    ],
)
def test_numbers_are_read_as_they_are_meant(
    tmp_path: Path, changes: Any, size: tuple[int, int]
) -> None:
    file = _put(tmp_path, _row(**changes))
    assert _read(file) == [("1", picture())]
    found = Inspector(open_rows(str(file), need_images=False)).run()
    assert (found.width.max, found.height.max) == size
    (line,) = (converted(file, tmp_path / "lines", with_images=False), 1)[1:]
    written = json.loads((tmp_path / "lines/rows.jsonl").read_text())
    assert (written["width"], written["height"]) == size
    assert line == 1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"width": 0, "height": 0}, "width x height is 0 x 0: whole numbers above 0 are wanted"),
        ({"width": -64, "height": 48}, "width x height is -64 x 48"),
        ({"width": 64.5, "height": 48}, "width x height is 64.5 x 48"),
        ({"width": "wide", "height": 48}, 'width x height is "wide" x 48'),
        ({"width": 64, "height": None}, "width x height is 64 x null"),
        ({"width": True, "height": 48}, "width x height is true x 48"),
        ({"image_id": None}, "no image_id: a text or a number is wanted"),
        ({"image_id": [1]}, r"image_id is \[1\]: a text or a number is wanted"),
        ({"objects": None}, "objects is not a list of JSON objects: it is missing"),
        ({"objects": [1]}, r"objects is not a list of JSON objects: it is \[1\]"),
        ({"objects": [{"id": "a", "bbox": [1, 2, "3", 4]}]}, r'bbox of .* is \[1, 2, "3", 4\]'),
        ({"objects": [{"id": 5, "bbox": [1, 2, 3, 4]}]}, r"'id' of {\"id\": 5, .* is not a name"),
    ],
)
def test_what_cannot_be_read_says_what_is_there(tmp_path: Path, changes: Any, reason: str) -> None:
    _refused(_put(tmp_path, _row(**changes)), reason)


ANSWER = json.dumps({"objects": OBJECTS, "relationships": EDGES})
CHAT = [
    {"role": "user", "content": "<image>Write the scene graph."},
    {"role": "assistant", "content": f"<think>A man.</think>\n<answer>{ANSWER}</answer>"},
]
PARTS = [{"role": "assistant", "content": [{"type": "text", "text": ANSWER}]}]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": CHAT, "images": ["a.jpg"]},
        {"messages": PARTS, "images": [{"path": "a.jpg"}]},
        {"messages": CHAT, "image": "a.jpg"},
        {"problem": "<image>Write.", "answer": f"```json\n{ANSWER}\n```", "images": ["a.jpg"]},
        {"prompt": CHAT[:1], "completion": PARTS, "images": ["a.jpg"]},
        {"prompt": "Write.", "completion": ANSWER, "images": ["a.jpg"]},
        {"prompt": "Write.", "solution": f"<answer>{ANSWER}</answer>", "image": "a.jpg"},
        {"query": "<image>Write.", "response": ANSWER, "images": ["a.jpg"]},
        {
            "conversations": [
                {"from": "human", "value": "<image>\nWrite."},
                {"from": "gpt", "value": ANSWER},
            ],
            "image": "a.jpg",
        },
    ],
)
def test_chats_are_rows(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, row: dict[str, Any]
) -> None:
    file = _put(tmp_path, row, {**row, "id": "b"}, {**row, "image_id": "c"})
    assert _read(file) == [("0", picture()), ("b", picture()), ("c", picture())]
    assert "chats without bbox_type: their boxes are taken for pixels of the image" in caplog.text


def test_chats_in_parquet_are_rows(tmp_path: Path) -> None:
    image = {"bytes": picture(), "path": None}
    rows = [{"messages": CHAT, "images": [image]}, {"messages": CHAT, "images": [image]}]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "train.parquet")
    assert _read(tmp_path / "train.parquet") == [("0", picture()), ("1", picture())]
    _put(tmp_path)
    rows = [{"problem": "Write.", "answer": ANSWER, "images": ["images/b.jpg"]}]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "paths.parquet")
    assert _read(tmp_path / "paths.parquet") == [("0", picture(80, 60))]


@pytest.mark.parametrize(("kind", "unit"), [("norm1000", 1000), ("norm1", 1)])
def test_chats_say_what_their_boxes_count_in(tmp_path: Path, kind: str, unit: int) -> None:
    sides = (64, 48, 64, 48)
    share = [
        {"id": item.id, "bbox": [v * unit / side for v, side in zip(item.bbox, sides, strict=True)]}
        for item in GRAPH
    ]
    answer = json.dumps({"objects": share, "relationships": EDGES})
    row = {"solution": answer, "images": ["a.jpg"], "bbox_type": kind, "width": 64, "height": 48}
    assert _read(_put(tmp_path, row)) == [("0", picture())]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (
            {"messages": CHAT[:1], "images": ["a.jpg"]},
            "no answer of an assistant in messages, conv",
        ),
        ({"answer": "{}", "images": ["a.jpg"]}, "the answer is not a graph with objects and rel"),
        ({"answer": "A man.", "images": ["a.jpg"]}, "the answer is not JSON .*A man"),
        (
            {"answer": ANSWER, "images": ["a.jpg", "b.jpg"]},
            "images is a list of 2: one image a row",
        ),
        (
            {"answer": ANSWER, "images": ["a.jpg"], "bbox_type": "norm1"},
            'bbox_type is "norm1": real .*, or norm1 or norm1000 with width and height in the row',
        ),
    ],
)
def test_chats_that_are_no_graphs_are_refused(tmp_path: Path, row: Any, reason: str) -> None:
    _refused(_put(tmp_path, row), reason)


def test_a_file_without_rows_says_so(tmp_path: Path) -> None:
    for name, content in [("a.jsonl", b""), ("a.json", b"[]"), ("b.json", b"")]:
        with pytest.raises(InvalidInputError, match=rf"{name}: no row in it; rows are wanted"):
            open_dataset(put(tmp_path / name, content))


def test_what_is_not_there_says_from_where(tmp_path: Path) -> None:
    for name in (tmp_path / "none.parquet", "a.parquet,b.parquet"):
        with pytest.raises(InvalidInputError, match=r"is not a dataset: nothing there \(from /"):
            open_dataset(name)
    datasets.Dataset.from_list([{"image": "a.jpg"}]).to_parquet(tmp_path / "train.parquet")
    reason = r"train.parquet: the dataset has no column image_id, objects, relationships; it has im"
    with pytest.raises(InvalidInputError, match=reason):
        open_rows(str(tmp_path / "train.parquet"))


@pytest.mark.parametrize(
    "text", ["1\n2\n", "1,2", "1, 2,\n", "\ufeff1\r\n2", "[1, 2]", '["1", "2"]', "1;2", "1\t2"]
)
def test_lists_of_ids_in_any_form(tmp_path: Path, text: str) -> None:
    file = tmp_path / "ids.txt"
    file.write_bytes(text.encode())
    assert _splits([f"val={file}"]) == {"1": "val", "2": "val"}
    rows = [_row(image_id=i) for i in range(1, 4)]
    done = converted(_put(tmp_path, *rows), tmp_path / "out", splits=_splits([f"val={file}"]))
    assert done.files["val"].num_images == 2
    assert done.tally.left_out == {"in no list of image ids": 1}


def test_lists_of_other_ids_are_compared(tmp_path: Path) -> None:
    put(tmp_path / "none.txt", b"\n")
    with pytest.raises(SettingsError, match="the file has no id; one a line is wanted"):
        _splits([f"val={tmp_path / 'none.txt'}"])
    with pytest.raises(InvalidInputError, match=r"the source has image '1', the lists '1.jpg'"):
        converted(_put(tmp_path, _row()), tmp_path / "out", splits={"1.jpg": "val"})
    assert ConversionOptions(folder=Path(os.devnull)).splits is None


def test_the_examples_of_the_documentation_are_read(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs/data.md").read_text()
    examples = [part.partition("```")[0] for part in page.split("```json\n")[1:]]
    row, chat, coco = (json.loads(example) for example in examples)
    put(tmp_path / "1.jpg", picture(160, 120))
    (plain,) = open_dataset(put(tmp_path / "row.jsonl", json.dumps(row).encode()))
    (said,) = open_dataset(put(tmp_path / "chat.jsonl", json.dumps(chat).encode()))
    converted(put(tmp_path / "coco.json", coco), tmp_path / "out", image_folders=(tmp_path,))
    (made,) = open_dataset(tmp_path / "out/train.parquet")
    assert made.graph == plain.graph
    assert said.graph.objects == plain.graph.objects[:1]


def test_utf_16_without_a_byte_order_mark_is_not_read_by_halves(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes('{"image_id": "1"}\n{"image_id": "2"}\n'.encode("utf-16-le"))
    with pytest.raises(InvalidInputError, match="UTF-16 or UTF-32 text; save it as UTF-8"):
        open_dataset(str(file))
