"""What both sides of `benchmarks/trainer.py` train on: models, prompts, completions, rewards."""

import io
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from planning.shapes import KNOWN
from scene_data.dataset import Sample
from scene_data.templates import prompt_messages
from scene_data.toy.scenes import render, toy_scene
from scene_data.toy.tiny_model import make_tiny_model
from scene_graph.boxes import RELATIVE_1000
from services.schemas.common import TextPart

SMALL = {
    "text": {
        "hidden_size": 256,
        "intermediate_size": 768,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "vocab_size": 8192,
    },
    "vision": {"depth": 4, "hidden_size": 192, "intermediate_size": 384, "out_hidden_size": 256},
}


def published(name: str) -> dict[str, dict[str, Any]]:
    """Sizes of a published checkpoint's `config.json`; nothing is downloaded."""
    known = KNOWN[name]
    tied = {"tie_word_embeddings": known["tie_word_embeddings"]}
    vision = known["vision_config"] | {"fullatt_block_indexes": [7, 15, 23, 31]}
    text = known["text_config"] | {"max_position_embeddings": 128000}
    return {"text": text, "vision": vision, "whole": tied}


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """A model, and the shape of a step on it."""

    name: str
    shape: dict[str, dict[str, Any]] | None
    """Over the tiny model's config; None is `assets/toy-start`."""
    image: tuple[int, int]
    """Width and height in pixels."""
    lengths: tuple[int, int]
    """Tokens of a completion, from and to."""
    num_groups: int
    group_size: int = 8
    together: int = 8
    """Completions of one micro batch of TRL; our budget is as many tokens."""

    def cut(self, layers: int | None) -> "Load":
        """The same with so many layers of text; None: all."""
        if layers is None or self.shape is None:
            return self
        text = self.shape["text"] | {"num_hidden_layers": layers}
        return replace(self, shape=self.shape | {"text": text})

    def model_path(self, folder: Path, dtype: str = "float32") -> Path:
        """Where the model is; made where it is not."""
        if self.shape is None:
            return Path(__file__).parents[1] / "assets" / "toy-start"
        path = folder / self.name
        if not path.exists():
            make_model(path, self.shape, dtype)
        return path


LOADS = {
    load.name: load
    for load in (
        Load(name="toy-start", shape=None, image=(112, 112), lengths=(30, 90), num_groups=4),
        Load(name="small", shape=SMALL, image=(336, 252), lengths=(60, 150), num_groups=4),
        *(
            Load(
                name=f"qwen2.5-vl-{size.lower()}",
                shape=published(f"Qwen/Qwen2.5-VL-{size}-Instruct"),
                image=(728, 560),
                lengths=(200, 800),
                num_groups=8,
            )
            for size in ("3B", "7B")
        ),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One group, before anybody laid it out."""

    sample: Sample
    text: str
    """The prompt's text, beside the image; no two are alike."""
    completions: list[list[int]]
    rewards: list[float]


def questions(load: Load, seed: int = 0) -> list[Question]:
    """The groups of a step; the same in every process."""
    rng = random.Random(seed)
    return [_question(load, rng, index) for index in range(load.num_groups)]


def prompt_ids(question: Question, processor: Any) -> list[int]:
    """As a sampler reports them: one placeholder for each visual token."""
    text = processor.apply_chat_template(
        [
            {
                "role": "user",
                "content": [{"type": "image"}, {"type": "text", "text": question.text}],
            }
        ],
        add_generation_prompt=True,
        tokenize=False,
    )
    found = processor(text=[text], images=[picture(question.sample)])
    return [int(token) for token in found["input_ids"][0]]


def picture(sample: Sample) -> Image.Image:
    """Decoded."""
    return Image.open(io.BytesIO(sample.image_bytes)).convert("RGB")


def make_model(folder: Path, shape: dict[str, dict[str, Any]], dtype: str) -> None:
    """Qwen2.5-VL with random weights in other sizes, and the tiny model's tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    make_tiny_model(folder)
    config = AutoConfig.from_pretrained(folder)
    text, vision = config.text_config.to_dict(), config.vision_config.to_dict()
    text |= shape["text"] | {"layer_types": None}
    whole = config.to_dict() | {"text_config": text, "vision_config": vision | shape["vision"]}
    whole |= shape.get("whole", {})
    torch.manual_seed(0)
    resized = type(config).from_dict(whole)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):  # billions take minutes
        model = AutoModelForImageTextToText.from_config(resized, dtype=getattr(torch, dtype))
    model.save_pretrained(folder)


def _question(load: Load, rng: random.Random, index: int) -> Question:
    scene = toy_scene(0, index, heldout=False)
    file = io.BytesIO()
    Image.open(io.BytesIO(render(scene))).resize(load.image).save(file, "PNG")
    parts = prompt_messages("toy", RELATIVE_1000)[0].content
    text = "".join(part.text for part in parts if isinstance(part, TextPart))
    lengths = [rng.randint(*load.lengths) for _ in range(load.group_size)]
    return Question(
        sample=Sample(
            image_id=str(index),
            image_bytes=file.getvalue(),
            width=load.image[0],
            height=load.image[1],
            graph=scene,
        ),
        text=f"Scene {index}. {text}",
        completions=[[rng.randrange(20, 500) for _ in range(n)] for n in lengths],
        rewards=[rng.random() for _ in lengths],
    )
