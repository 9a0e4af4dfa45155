"""`sgg-rl data` as a person meets it."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app
from scene_data.toy.scenes import make_toy
from services.errors import InvalidInputError, SettingsError
from tests.raw_annotations import picture, put, put_vg, vg_object, vg_relationship

RIDING = vg_relationship(vg_object(1, "man"), "riding", vg_object(2, "contraption", x=50, w=30))


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return put_vg(tmp_path, *({"image_id": i, "relationships": [RIDING]} for i in (1, 2, 3)))


MAN = {"id": "man.1", "bbox": [1, 2, 3, 4]}


def _sgg(*arguments: str | Path) -> str:
    done = CliRunner().invoke(app, ["data", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return " ".join(done.output.split())


def test_convert_says_what_it_read_wrote_and_dropped(raw: Path) -> None:
    put(raw / "pixels/VG_100K_2/2.jpg", picture(10, 10))
    put(raw / "ids.txt", b"1\n2\n")
    said = _sgg(
        "convert",
        raw,
        "--output",
        raw / "out",
        "--images",
        raw / "pixels",
        "--split",
        f"val={raw / 'ids.txt'}",
    )
    assert "is read as raw Visual Genome" in said
    assert "out/val.parquet: 1 images, 2 objects, 1 relationships" in said
    assert "1 in no list of image ids" in said
    assert "1 part_of_box_outside_image" in said
    assert "image 2: image has 10x10 pixels, its annotations say 64x48" in said


def test_convert_s_json_has_the_files_and_what_was_left_out(raw: Path) -> None:
    put(raw / "ids.txt", b"1\n2\n")
    split = f"val={raw / 'ids.txt'}"
    words = ("convert", raw, "--output", raw / "out", "--no-images", "--split", split, "--json")
    found = json.loads(_sgg(*words))
    assert found["layout"] == "raw Visual Genome"
    assert found["files"]["val"]["num_images"] == 2
    assert found["tally"]["left_out"] == {"in no list of image ids": 1}


def test_convert_needs_images_or_the_word_that_there_are_none(raw: Path) -> None:
    with pytest.raises(InvalidInputError, match="--images, or write annotations alone"):
        _sgg("convert", raw, "--output", raw / "out")
    (raw / "pixels/VG_100K_2").rename(raw / "images")  # beside the file they need no option
    assert "train.parquet: 3 images" in _sgg("convert", raw, "--output", raw / "beside")
    assert "train.jsonl: 3 images" in _sgg("convert", raw, "--output", raw / "out", "--no-images")


@pytest.mark.parametrize(
    ("split", "reason"),
    [
        ("test", "write NAME=FILE"),
        ("../x=ids.txt", "write NAME=FILE"),
        ("test=nowhere.txt", "cannot read"),
    ],
)
def test_a_split_that_cannot_be_read_is_a_wrong_setting(raw: Path, split: str, reason: str) -> None:
    with pytest.raises(SettingsError, match=reason):
        _sgg("convert", raw, "--output", raw / "out", "--no-images", "--split", split)


def test_inspect_shows_and_draws(tmp_path: Path) -> None:
    make_toy(tmp_path, num_train=6, num_heldout=2)
    file = tmp_path / "train.parquet"
    said = _sgg("inspect", file, "--vocabulary", "vg150", "--output", tmp_path / "x", "--images")
    assert "6 rows 6 usable 0 broken" in said
    assert "every image was decoded" in said
    assert "image width, pixels 112 112" in said
    assert "(100.0%)" in said  # no toy name is in VG150
    assert len(list((tmp_path / "x").glob("sample-*.png"))) == 4
    told = json.loads((tmp_path / "x/inspection.json").read_text())
    assert (told["num_rows"], told["images_checked"]) == (6, True)
    printed = CliRunner().invoke(app, ["data", "inspect", str(file), "--json"])
    assert json.loads(printed.stdout)["predicates"]["num_instances"] > 6


def test_a_dataset_without_a_usable_row_is_shown_and_fails(tmp_path: Path) -> None:
    put(tmp_path / "a.jpg", picture())
    put(tmp_path / "rows.json", [{"image": "a.jpg", "objects": n} for n in (3, 4)])
    done = CliRunner().invoke(app, ["data", "inspect", str(tmp_path / "rows.json"), "--json"])
    assert isinstance(done.exception, InvalidInputError)
    why = "none of its 2 rows can be used, mostly for one reason: no image_id"
    assert why in done.exception.message
    assert json.loads(done.stdout)["num_usable"] == 0


def test_annotations_alone_are_a_reference(tmp_path: Path) -> None:
    row = {"image_id": "1", "objects": [MAN], "relationships": []}
    put(tmp_path / "rows.json", [row | {"width": 8, "height": 9}, row])
    said = _sgg("inspect", tmp_path / "rows.json")
    assert "this is a reference for `sgg-rl evaluate`, not to train on; it leaves out the 1" in said
    assert "image height, pixels 9 9" in said


def test_annotations_without_a_size_are_for_nothing_and_have_no_numbers_of_it(
    tmp_path: Path,
) -> None:
    put(tmp_path / "rows.json", [{"image_id": "1", "objects": [MAN], "relationships": []}])
    done = CliRunner().invoke(app, ["data", "inspect", str(tmp_path / "rows.json")])
    assert isinstance(done.exception, InvalidInputError)
    assert "no row names an image (`image`) or says its width and height" in done.exception.message
    said = " ".join(done.stdout.split())
    assert "objects an image 1.0" in said
    assert "image width" not in said
    assert "box " not in said
    put(tmp_path / "rows.json", [{"image_id": "1"}])
    broken = CliRunner().invoke(app, ["data", "inspect", str(tmp_path / "rows.json")])
    assert "an image" not in broken.stdout


def test_text_of_a_dataset_has_no_effect_on_the_terminal(tmp_path: Path) -> None:
    put(tmp_path / "a.jpg", picture())
    objects = [{"id": "[red]\x1b[2Jman.1", "bbox": [1, 2, 3, 4]}]
    row = {"image_id": "[/bold]", "image": "a.jpg", "objects": objects, "relationships": []}
    put(tmp_path / "rows.json", [row, row, {**row, "objects": [{"id": "[/x]", "bbox": None}]}])
    said = _sgg("inspect", tmp_path / "rows.json")
    assert "[red]\\x1b[2Jman 2" in said
    assert "row 2 (image [/bold]): bbox of '[/x]' is not four numbers" in said
    assert "image id of an earlier row: [/bold]" in said
    assert "\x1b[2J" not in said
