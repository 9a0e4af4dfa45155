"""Pixels of the resized input are those that each family's own processor resizes an image to."""

import random
from pathlib import Path
from typing import get_args

import pytest
from PIL import Image

from scene_data.dataset import Sample
from scene_data.messages import box_space
from scene_data.toy.tiny_model import Family, make_tiny_model
from scene_graph.graph import SceneGraph
from services.models.families import model_family, with_box_space
from services.settings import Settings
from trainer.policy.model import load_processor


def sample(width: int, height: int) -> Sample:
    nothing = SceneGraph(objects=(), relationships=())
    return Sample(image_id="i", image_bytes=b"", width=width, height=height, graph=nothing)


@pytest.mark.parametrize("family", get_args(Family))
def test_pixels_of_the_input_are_the_processors(family: Family, tmp_path: Path) -> None:
    """Other limits than the folder's own: the run's hold. Sides of 1 to 900, 1:30 at most."""
    make_tiny_model(tmp_path, family=family)
    limits = {"min_pixels": 10_000, "max_pixels": 60_000}
    settings = Settings.model_validate(
        {
            "model": {
                "path": str(tmp_path),
                "box_space": "pixels",
                "box_space_override": True,
                **limits,
            },
            "data": {"train": "unused"},
        }
    )
    images = load_processor(settings).image_processor
    assert images.patch_size * images.merge_size == model_family(str(tmp_path)).patch_factor
    rng = random.Random(0)
    for _ in range(40):
        height = rng.randint(1, 900)
        width = rng.randint(max(1, height // 30), min(900, 30 * height))
        grid = images(images=[Image.new("RGB", (width, height))], return_tensors="pt")
        _, rows, columns = grid["image_grid_thw"][0].tolist()
        found = box_space(settings.model, sample(width, height))
        assert str(found) == f"pixels:{columns * images.patch_size}x{rows * images.patch_size}"


@pytest.mark.parametrize("family", get_args(Family))
def test_auto_is_the_same_before_and_after_it_is_decided(family: Family, tmp_path: Path) -> None:
    make_tiny_model(tmp_path, family=family)
    settings = Settings.model_validate(
        {"model": {"path": str(tmp_path)}, "data": {"train": "unused"}}
    )
    wanted = "pixels:588x392" if family == "qwen2_5_vl" else "relative_1000"
    for model in (settings.model, with_box_space(settings).model):
        assert str(box_space(model, sample(600, 400))) == wanted
