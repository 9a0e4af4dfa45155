"""What of the demo's settings follows a user's data."""

import json
from pathlib import Path

import pytest
from PIL import Image

from cli.settings import demo_settings
from evaluation.of_a_run.heldout import heldout_samples
from launcher.demo_data import data_overrides
from scene_data.dataset import open_dataset
from scene_data.toy.scenes import make_toy
from services.settings import Settings

CONFIG = Path("demo-data")


def photographs(
    folder: Path, number: int, *, names: tuple[str, str] = ("wizard", "wand"), size: int = 300
) -> Path:
    lines = []
    for i in range(number):
        Image.new("RGB", (size, 200)).save(folder / f"{i}.jpg")
        row = {
            "image_id": f"photo-{i}",
            "image": f"{i}.jpg",
            "objects": [
                {"id": f"{name}.{n}", "bbox": [1, 1, 90, 90]} for n, name in enumerate(names, 1)
            ],
            "relationships": [
                {"subject": f"{names[0]}.1", "predicate": "on", "object": f"{names[1]}.2"}
            ],
        }
        lines.append(json.dumps(row))
    file = folder / "photos.jsonl"
    file.write_text("\n".join(lines))
    return file


def settings(folder: Path, data: Path, *more: str) -> Settings:
    return demo_settings([CONFIG], [f"run.root={folder / 'runs'}", *more], str(data))


def ids(path: str) -> set[str]:
    return {sample.image_id for sample in open_dataset(path)}


def test_photographs_are_evaluated_on_rows_that_are_set_aside(tmp_path: Path) -> None:
    data = photographs(tmp_path, 10)
    found = settings(tmp_path, data)
    assert found.data.heldout == str(tmp_path / "runs/demo-data.data/heldout.parquet")
    heldout, train = ids(found.data.heldout), ids(found.data.train)
    assert (len(heldout), len(train)) == (2, 8)
    assert heldout | train == ids(str(data))
    assert {sample.image_id for sample in heldout_samples(found)} == heldout
    assert (found.data.template, found.data.vocabulary) == ("open", None)
    assert found.model.max_pixels == 300 * 200
    prompt = found.rollout.max_model_len - found.sampling.max_tokens
    assert 400 < prompt < 600, "what the open instruction and 77 visual tokens take"
    again = settings(tmp_path, data, "run.seed=5")
    assert ids(str(again.data.heldout)) == heldout, "always the same rows"


def test_no_more_rows_are_copied_than_the_steps_take(tmp_path: Path) -> None:
    found = settings(
        tmp_path,
        photographs(tmp_path, 30),
        "trainer.num_steps=2",
        "trainer.groups_per_step=3",
        "evaluation.num_images=4",
    )
    assert len(ids(found.data.train)) == 6
    assert len(ids(str(found.data.heldout))) == 4


def test_a_split_beside_it_is_the_held_out_one(tmp_path: Path) -> None:
    make_toy(tmp_path, num_train=4, num_heldout=2)
    found = settings(tmp_path, tmp_path / "train.parquet")
    assert found.data.heldout == str(tmp_path / "heldout.parquet")
    assert found.data.train == str(tmp_path / "train.parquet")
    assert found.data.template == "toy", "its names are those of toy-scenes"
    assert found.model.max_pixels == 12544
    (tmp_path / "heldout.parquet").rename(tmp_path / "val.parquet")
    found = settings(tmp_path, tmp_path / "train.parquet")
    assert found.data.heldout == str(tmp_path / "val.parquet")


@pytest.mark.parametrize(
    ("names", "vocabulary"),
    [(("man", "hat"), "vg150"), (("person", "sky-other-merged"), "psg"), (("man", "wand"), None)],
)
def test_the_instruction_lists_names_where_the_data_use_no_others(
    tmp_path: Path, names: tuple[str, str], vocabulary: str | None
) -> None:
    found = settings(tmp_path, photographs(tmp_path, 2, names=names))
    assert found.data.vocabulary == vocabulary
    assert found.data.template == ("closed" if vocabulary else "open")


def test_what_the_user_sets_goes_over_it(tmp_path: Path) -> None:
    make_toy(tmp_path, num_train=4, num_heldout=2)
    heldout = f"data.heldout={tmp_path / 'heldout.parquet'}"
    data = photographs(tmp_path, 3, size=2000)
    found = settings(tmp_path, data, heldout, "model.max_pixels=5000", "data.template=open")
    assert found.data.heldout == str(tmp_path / "heldout.parquet")
    assert found.data.train == str(data)
    assert found.model.max_pixels == 5000


def test_large_pictures_get_as_many_pixels_as_the_demo_has_time_for(tmp_path: Path) -> None:
    found = settings(tmp_path, photographs(tmp_path, 2, size=2000))
    assert found.model.max_pixels == 256 * 28 * 28


def test_what_is_no_dataset_is_left_to_the_look_at_all_inputs(tmp_path: Path) -> None:
    assert data_overrides([CONFIG], [], "nope") == ['data.train="nope"', "data.heldout="]
    one = settings(tmp_path, photographs(tmp_path, 1))
    assert one.data.heldout is None
