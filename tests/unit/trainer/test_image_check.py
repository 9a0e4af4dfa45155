"""Against what the policy's processor really makes of an image."""

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from scene_data.dataset import Sample
from scene_graph.graph import SceneGraph
from services.errors import InvalidInputError
from services.schemas.rollouts import RolloutGroup
from tests.tagged_pictures import ORIENTATIONS, noise, tagged
from trainer.batches.images import ImageCheck, image_features
from trainer.collection.group_checks import image_refusal

GOLDEN = Path(__file__).parents[2] / "contract/golden/rollout_group.json"
MODEL = Path(__file__).parents[3] / "assets/toy-start"


@pytest.fixture(scope="module")
def processor() -> Any:
    return AutoProcessor.from_pretrained(MODEL)


def encoded(width: int, height: int) -> bytes:
    stream = io.BytesIO()
    Image.effect_noise((width, height), 80.0).convert("RGB").save(stream, "JPEG")
    return stream.getvalue()


@pytest.mark.parametrize(("width", "height"), [(112, 112), (640, 480), (57, 300)])
def test_it_counts_what_the_processor_makes(processor: Any, width: int, height: int) -> None:
    check = ImageCheck(processor)
    image = Image.open(io.BytesIO(encoded(width, height)))
    grid = processor.image_processor(images=[image], return_tensors="pt")["image_grid_thw"][0]
    expected = int(grid.prod()) // processor.image_processor.merge_size**2
    assert check.num_tokens(encoded(width, height)) == expected


def test_images_that_would_fail_later_fail_here(processor: Any) -> None:
    check, whole = ImageCheck(processor), encoded(300, 200)
    assert Image.open(io.BytesIO(whole[: len(whole) // 2])).size == (300, 200), "its head is fine"
    with pytest.raises(InvalidInputError, match="damaged"):
        check.num_tokens(whole[: len(whole) // 2])
    with pytest.raises(InvalidInputError, match="not an image"):
        check.num_tokens(b"GIF, no")
    with pytest.raises(InvalidInputError, match="2100x10 pixels"):
        check.num_tokens(encoded(2100, 10))


def test_what_takes_too_many_tokens_fails_here() -> None:
    """Against what the processor makes of it: a strip is never thinner than a patch."""
    limits = {"shortest_edge": 3136, "longest_edge": 16 * 28 * 28}
    small = AutoProcessor.from_pretrained(MODEL, size=limits)
    check = ImageCheck(small)
    for width in range(28, 1200, 56):
        num_patches = small.image_processor.get_number_of_image_patches(40, width)
        if num_patches // 4 <= 16:
            assert check.num_tokens(encoded(width, 40)) == num_patches // 4
        else:
            with pytest.raises(InvalidInputError, match="too narrow"):
                check.num_tokens(encoded(width, 40))
    assert num_patches // 4 > 16


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_tokens_and_patches_of_a_turned_picture_are_the_upright_one_s(
    processor: Any, orientation: int
) -> None:
    upright = noise(112, 224)
    data, plain = tagged(upright, orientation), tagged(upright, 1)
    assert ImageCheck(processor).num_tokens(data) == ImageCheck(processor).num_tokens(plain)
    graph = SceneGraph(objects=(), relationships=())
    features = [
        image_features(
            Sample(image_id="1", image_bytes=file, width=224, height=112, graph=graph), processor
        )
        for file in (data, plain)
    ]
    assert torch.equal(features[0].pixels, features[1].pixels)
    assert torch.equal(features[0].grid, features[1].grid)


def test_a_prompt_with_other_placeholders_is_refused() -> None:
    group = RolloutGroup.model_validate_json(GOLDEN.read_text())
    group = group.model_copy(update={"prompt_token_ids": [1, 7, 7, 7, 2]})
    assert image_refusal(group, 7, expected=3) is None
    refused = image_refusal(group, 7, expected=4)
    assert refused is not None
    assert "3 image tokens, this trainer's processor makes 4" in refused
