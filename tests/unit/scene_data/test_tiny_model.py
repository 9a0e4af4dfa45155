import io
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize as hf_smart_resize

from scene_data.templates import answer_text, prompt_messages
from scene_data.toy.scenes import SIDE, render, toy_scene
from scene_data.toy.tiny_model import SPECIAL_TOKENS, VOCAB_SIZE, Family, make_tiny_model
from scene_graph.boxes import RELATIVE_1000, smart_resize

MAX_BYTES = 8_000_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny"
    make_tiny_model(path)
    return path


@pytest.fixture(scope="module")
def processor(folder: Path) -> Any:
    return AutoProcessor.from_pretrained(folder)


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return AutoModelForImageTextToText.from_pretrained(folder)


def _inputs(processor: Any, images: list[Image.Image]) -> Any:
    messages = [m.model_dump() for m in prompt_messages("toy", RELATIVE_1000)]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    return processor(text=[text] * len(images), images=images, return_tensors="pt")


def test_the_folder_is_small_and_has_no_pickle(folder: Path) -> None:
    files = list(folder.iterdir())
    assert sum(file.stat().st_size for file in files) < MAX_BYTES
    assert {file.suffix for file in files} <= {".json", ".jinja", ".safetensors"}


def test_a_forward_pass_has_one_feature_for_each_image_token(processor: Any, model: Any) -> None:
    toy = Image.open(io.BytesIO(render(toy_scene(0, 0, heldout=False))))
    for image, wanted in [(toy, 16), (Image.new("RGB", (170, 90)), 18)]:
        inputs = _inputs(processor, [image])
        assert int((inputs["input_ids"] == model.config.image_token_id).sum()) == wanted
        assert model(**inputs).logits.shape == (1, inputs["input_ids"].shape[1], VOCAB_SIZE)


def test_the_image_changes_the_prediction(processor: Any, model: Any) -> None:
    scenes = [toy_scene(0, i, heldout=False) for i in (0, 1)]
    inputs = _inputs(processor, [Image.open(io.BytesIO(render(s))) for s in scenes])
    logits = model(**inputs).logits[:, -1]
    assert not torch.allclose(logits[0], logits[1])


def test_generation_stops_at_the_end_of_a_turn(processor: Any, model: Any) -> None:
    end = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert processor.tokenizer.eos_token_id == end
    assert model.generation_config.eos_token_id == end
    assert model.config.text_config.eos_token_id == end


def test_the_prompt_has_the_shape_of_qwens(processor: Any) -> None:
    messages = [m.model_dump() for m in prompt_messages("toy", RELATIVE_1000)]
    assert processor.apply_chat_template(messages, add_generation_prompt=True) == (
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Scene graph:<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_tokens_of_toy_answers(processor: Any) -> None:
    tokenizer = processor.tokenizer
    assert len(tokenizer) == VOCAB_SIZE
    lengths = []
    for index in range(100):
        graph = toy_scene(9, index, heldout=index % 2 == 0)
        text = answer_text(graph, RELATIVE_1000, width=SIDE, height=SIDE)
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == text
        pieces = [tokenizer.decode([i]) for i in ids]
        assert all(len(piece) == 1 for piece in pieces if any(c.isdigit() for c in piece))
        lengths.append(len(ids))
    assert 45 <= sum(lengths) / len(lengths) <= 65
    assert max(lengths) <= 80


@pytest.mark.parametrize(
    ("family", "unit"), [("qwen2_vl", 28), ("qwen2_5_vl", 28), ("qwen3_vl", 32)]
)
def test_each_family_keeps_the_pixel_limits_in_its_own_patches(
    family: Family, unit: int, tmp_path: Path
) -> None:
    make_tiny_model(tmp_path, family=family, min_pixels=4 * 32 * 32, max_pixels=200 * 200)
    model: Any = AutoModelForImageTextToText.from_pretrained(tmp_path)
    processor: Any = AutoProcessor.from_pretrained(tmp_path)
    assert model.config.model_type == family
    for size in [(640, 480), (20, 30), (112, 112)]:
        inputs = _inputs(processor, [Image.new("RGB", size)])
        width, height = smart_resize(
            *size, factor=unit, min_pixels=4 * 32 * 32, max_pixels=200 * 200
        )
        wanted = (width // unit) * (height // unit)
        assert int((inputs["input_ids"] == model.config.image_token_id).sum()) == wanted
        assert model(**inputs).logits.shape == (1, inputs["input_ids"].shape[1], VOCAB_SIZE)


@settings(max_examples=50, deadline=None)
@given(text=st.text(max_size=60))
def test_any_text_survives_the_tokenizer(processor: Any, text: str) -> None:
    if not any(token in text for token in SPECIAL_TOKENS):
        ids = processor.tokenizer(text)["input_ids"]
        assert processor.tokenizer.decode(ids) == text


def test_prompt_and_answer_tokenise_apart_as_together(processor: Any) -> None:
    tokenizer = processor.tokenizer
    answer = answer_text(toy_scene(0, 0, heldout=False), RELATIVE_1000, width=SIDE, height=SIDE)
    prompt = "<|im_start|>assistant\n"
    together = tokenizer(prompt + answer)["input_ids"]
    assert together == tokenizer(prompt)["input_ids"] + tokenizer(answer)["input_ids"]


@given(
    width=st.integers(1, 4000),
    height=st.integers(1, 4000),
    min_pixels=st.integers(28 * 28, 100 * 28 * 28),
    extra=st.integers(0, 2000 * 28 * 28),
)
def test_resizing_rule_is_transformers(
    width: int, height: int, min_pixels: int, extra: int
) -> None:
    limits = {"min_pixels": min_pixels, "max_pixels": min_pixels + extra}
    try:
        wanted = hf_smart_resize(height, width, **limits)
    except ValueError:
        with pytest.raises(ValueError, match="aspect ratio"):
            smart_resize(width, height, **limits)
    else:
        assert smart_resize(width, height, **limits) == wanted[::-1]
