"""`sgg-rl predict` through vLLM: pictures as a phone stores them, beside the same ones upright."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from scene_data.dataset import open_dataset
from scene_data.toy.scenes import make_toy
from services.images import decode_image
from services.settings import dump_settings
from tests.e2e.conftest import RunningServer
from tests.processes import sgg_process
from tests.tagged_pictures import encoded, tagged

TURNS = (3, 6, 8)
"""What phones write"""
WIDTH, HEIGHT = 112, 84


def phone_pictures(folder: Path) -> Path:
    """Each scene stored upright, and turned with a tag that says so; a HEIC; a file cut short."""
    make_toy(folder / "toy", num_train=1, num_heldout=len(TURNS))
    photos = folder / "photos"
    photos.mkdir()
    for turn, sample in zip(TURNS, open_dataset(folder / "toy/heldout.parquet"), strict=True):
        scene = np.asarray(decode_image(sample.image_bytes))[:HEIGHT, :WIDTH]
        (photos / f"{turn}-upright.png").write_bytes(encoded(Image.fromarray(scene)))
        (photos / f"{turn}-phone.png").write_bytes(tagged(scene, turn))
    (photos / "photo.heic").write_bytes(tagged(scene, 6, "HEIF"))
    whole = tagged(scene, 6, "JPEG")
    (photos / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    return photos


def predicted(server: RunningServer, folder: Path, photos: Path) -> tuple[int, str, Path]:
    config, log, out = folder / "run.toml", folder / "log", folder / "out"
    config.write_text(dump_settings(server.settings))
    options = ["--set", "data.template=toy", "--max-tokens", "96", "--output", str(out)]
    arguments = ["predict", str(photos), "--server", server.url, "-c", str(config), *options]
    with sgg_process(log, *arguments) as process:
        code = process.wait(300)
    return code, log.read_text(), out


def test_a_phones_picture_is_answered_and_drawn_as_the_same_one_upright(
    rollout_server: RunningServer, tmp_path: Path
) -> None:
    photos = phone_pictures(tmp_path)
    code, log, out = predicted(rollout_server, tmp_path, photos)
    text = (out / "predictions.jsonl").read_text()
    lines: dict[str, Any] = {
        Path(line["image_id"]).stem: line for line in map(json.loads, text.splitlines())
    }
    for turn in TURNS:
        upright, phone = lines[f"{turn}-upright"], lines[f"{turn}-phone"]
        assert (phone["width"], phone["height"]) == (WIDTH, HEIGHT)
        for line in (phone, upright):
            line["file"] = line.pop("image_id"), line.pop("image_sha256")
        assert {**phone, "file": ""} == {**upright, "file": ""}
    photo = lines["photo"]
    assert (photo["width"], photo["height"]) == (WIDTH, HEIGHT)
    assert photo["num_tokens"] > 0
    drawings = {file.stem: file.read_bytes() for file in out.glob("drawings/*.png")}
    assert set(drawings) == {stem for stem, line in lines.items() if "status" not in line}
    assert len(drawings) >= 2, log
    for turn in TURNS:
        assert drawings.get(f"{turn}-upright") == drawings.get(f"{turn}-phone")
    boxes = np.array([o["bbox"] for line in lines.values() for o in line["objects"]])
    assert (boxes <= (WIDTH, HEIGHT, WIDTH, HEIGHT)).all()
    assert lines["cut"]["status"] == "refused"
    assert "damaged" in lines["cut"]["problem"]
    assert code == 1
    assert log.splitlines()[-1] == f"look at {out / 'predictions.html'}"
