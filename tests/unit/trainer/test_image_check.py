"""Against what the policy's processor really makes of an image."""

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from transformers import AutoProcessor

from services.errors import InvalidInputError
from services.schemas.rollouts import RolloutGroup
from trainer.collection.image_check import ImageCheck
from trainer.collection.intake import image_refusal

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
    check = ImageCheck(processor, 7)
    image = Image.open(io.BytesIO(encoded(width, height)))
    grid = processor.image_processor(images=[image], return_tensors="pt")["image_grid_thw"][0]
    expected = int(grid.prod()) // processor.image_processor.merge_size**2
    assert check.num_tokens(encoded(width, height)) == expected


def test_images_that_would_fail_later_fail_here(processor: Any) -> None:
    check, whole = ImageCheck(processor, 7), encoded(300, 200)
    assert Image.open(io.BytesIO(whole[: len(whole) // 2])).size == (300, 200), "its head is fine"
    with pytest.raises(InvalidInputError, match="damaged"):
        check.num_tokens(whole[: len(whole) // 2])
    with pytest.raises(InvalidInputError, match="not an image"):
        check.num_tokens(b"GIF, no")
    with pytest.raises(InvalidInputError, match="2100x10 pixels"):
        check.num_tokens(encoded(2100, 10))


def test_a_prompt_with_other_placeholders_is_refused() -> None:
    group = RolloutGroup.model_validate_json(GOLDEN.read_text())
    group = group.model_copy(update={"prompt_token_ids": [1, 7, 7, 7, 2]})
    assert image_refusal(group, 7, expected=3) is None
    refused = image_refusal(group, 7, expected=4)
    assert refused is not None
    assert "3 image tokens, this trainer's processor makes 4" in refused
