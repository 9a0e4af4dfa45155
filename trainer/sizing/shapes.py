"""Sizes of the models that the recipes train, known without their weights or the network.

Each is the part of the published `config.json` that decides shapes.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from services.errors import SettingsError


def _qwen2(hidden: int, inner: int, layers: int, heads: int, kv: int, vocab: int) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "vocab_size": vocab,
    }


_TEXT_3B = _qwen2(2048, 11008, 36, 16, 2, 151936)
_TEXT_2B = _qwen2(1536, 8960, 28, 12, 2, 151936)
_TEXT_7B = _qwen2(3584, 18944, 28, 28, 4, 152064)
_VISION_2 = {"depth": 32, "embed_dim": 1280, "num_heads": 16, "mlp_ratio": 4, "patch_size": 14}
_VISION_2_5 = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16}

KNOWN: dict[str, tuple[str, dict[str, Any]]] = {
    "Qwen/Qwen2-VL-2B-Instruct": (
        "qwen2_vl",
        {
            "text_config": _TEXT_2B,
            "vision_config": {**_VISION_2, "hidden_size": 1536},
            "tie_word_embeddings": True,
        },
    ),
    "Qwen/Qwen2-VL-7B-Instruct": (
        "qwen2_vl",
        {
            "text_config": _TEXT_7B,
            "vision_config": {**_VISION_2, "hidden_size": 3584},
            "tie_word_embeddings": False,
        },
    ),
    "Qwen/Qwen2.5-VL-3B-Instruct": (
        "qwen2_5_vl",
        {
            "text_config": _TEXT_3B,
            "vision_config": {**_VISION_2_5, "out_hidden_size": 2048},
            "tie_word_embeddings": True,
        },
    ),
    "Qwen/Qwen2.5-VL-7B-Instruct": (
        "qwen2_5_vl",
        {
            "text_config": _TEXT_7B,
            "vision_config": {**_VISION_2_5, "out_hidden_size": 3584},
            "tie_word_embeddings": False,
        },
    ),
}
"""By hub name: family and configuration."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """What memory depends on."""

    tower: int
    """Parameters of the vision tower, without its projector."""
    projector: int
    language: int
    """Parameters of the language model, the output layer counted where it is not tied."""
    hidden_size: int
    intermediate_size: int
    num_layers: int
    vocab_size: int
    vision_layers: int
    vision_hidden_size: int

    @property
    def num_parameters(self) -> int:
        """All of them."""
        return self.tower + self.projector + self.language


@cache
def model_shape(path: str) -> ModelShape:
    """Of a folder, of a cached hub name, or of a known one. No weights are read.

    Raises:
        SettingsError: Nothing is known of it here.
    """
    config = _config(path)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    visual = dict(model.model.visual.named_parameters())
    projector = sum(p.numel() for name, p in visual.items() if "merger" in name)
    vision = sum(p.numel() for p in visual.values())
    total = sum(p.numel() for p in model.parameters())
    text, seen = config.text_config, config.vision_config
    return ModelShape(
        tower=vision - projector,
        projector=projector,
        language=total - vision,
        hidden_size=text.hidden_size,
        intermediate_size=text.intermediate_size,
        num_layers=text.num_hidden_layers,
        vocab_size=text.vocab_size,
        vision_layers=seen.depth,
        vision_hidden_size=getattr(seen, "embed_dim", None) or seen.hidden_size,
    )


def _config(path: str) -> Any:
    if path in KNOWN:
        family, values = KNOWN[path]
        return AutoConfig.for_model(family, **values)
    try:
        config = AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise SettingsError(f"model.path: nothing is known of {path} here: {error}") from error
    if not hasattr(config, "vision_config"):
        raise SettingsError(f"model.path: {path} is {config.model_type}, which sees no images")
    return config
