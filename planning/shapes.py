"""Sizes of the models that the recipes train, known without their weights or the network.

Each is the part of the published `config.json` that decides shapes.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

from services.errors import SettingsError
from services.models.families import PUBLISHED, model_family


def _qwen2(hidden: int, inner: int, layers: int, heads: int, kv: int, vocab: int) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "vocab_size": vocab,
        "rope_parameters": _rope(1e6, [16, 24, 24]),
    }


def _qwen3(hidden: int, inner: int, layers: int, heads: int) -> dict[str, Any]:
    rope = _rope(5e6, [24, 20, 20]) | {"mrope_interleaved": True}
    own = {"head_dim": 128, "rope_parameters": rope}
    return _qwen2(hidden, inner, layers, heads, 8, 151936) | own


def _rope(theta: float, sections: list[int]) -> dict[str, Any]:
    """Sections: time, height and width; together half of a head."""
    return {"rope_type": "default", "rope_theta": theta, "mrope_section": sections}


def _qwen3_5(hidden: int, inner: int, layers: int) -> dict[str, Any]:
    """Sizes of recurrent layers, and positions, are transformers' defaults."""
    sizes = _qwen2(hidden, inner, layers, 16, 4, 248320) | {"head_dim": 256}
    return {name: value for name, value in sizes.items() if name != "rope_parameters"}


_TEXT_3B = _qwen2(2048, 11008, 36, 16, 2, 151936)
_TEXT_2B = _qwen2(1536, 8960, 28, 12, 2, 151936)
_TEXT_7B = _qwen2(3584, 18944, 28, 28, 4, 152064)
_VISION_2 = {"depth": 32, "embed_dim": 1280, "num_heads": 16, "mlp_ratio": 4, "patch_size": 14}
_TEXT_32B = _qwen2(5120, 27648, 64, 40, 8, 152064)
_TEXT_72B = _qwen2(8192, 29568, 80, 64, 8, 152064)
_VISION_2_5 = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16}
_VISION_2_5_LARGE = _VISION_2_5 | {"intermediate_size": 3456}


def _vision_3(hidden: int, inner: int, layers: int, *deepstack: int) -> dict[str, Any]:
    return {
        "depth": layers,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_heads": 16,
        "deepstack_visual_indexes": list(deepstack),
    }


_VISION_3_SMALL = _vision_3(1024, 4096, 24, 5, 11, 17)
_VISION_3_5_SMALL = {k: v for k, v in _VISION_3_SMALL.items() if not k.startswith("deepstack")}
_VISION_3 = _vision_3(1152, 4304, 27, 8, 16, 24)


def _parts(text: dict[str, Any], vision: dict[str, Any], *, tied: bool) -> dict[str, Any]:
    """A whole configuration; the projector ends in the text's width."""
    width = "hidden_size" if "embed_dim" in vision else "out_hidden_size"
    vision = vision | {width: text["hidden_size"]}
    return {"text_config": text, "vision_config": vision, "tie_word_embeddings": tied}


KNOWN: dict[str, dict[str, Any]] = {
    "Qwen/Qwen2-VL-2B-Instruct": _parts(_TEXT_2B, _VISION_2, tied=True),
    "Qwen/Qwen2-VL-7B-Instruct": _parts(_TEXT_7B, _VISION_2, tied=False),
    "Qwen/Qwen2.5-VL-3B-Instruct": _parts(_TEXT_3B, _VISION_2_5, tied=True),
    "Qwen/Qwen2.5-VL-7B-Instruct": _parts(_TEXT_7B, _VISION_2_5, tied=False),
    "Qwen/Qwen2.5-VL-32B-Instruct": _parts(_TEXT_32B, _VISION_2_5_LARGE, tied=False),
    "Qwen/Qwen2.5-VL-72B-Instruct": _parts(_TEXT_72B, _VISION_2_5_LARGE, tied=False),
    "Qwen/Qwen3-VL-2B-Instruct": _parts(_qwen3(2048, 6144, 28, 16), _VISION_3_SMALL, tied=True),
    "Qwen/Qwen3-VL-4B-Instruct": _parts(_qwen3(2560, 9728, 36, 32), _VISION_3_SMALL, tied=True),
    "Qwen/Qwen3-VL-8B-Instruct": _parts(_qwen3(4096, 12288, 36, 32), _VISION_3, tied=False),
    "Qwen/Qwen3.5-4B": _parts(_qwen3_5(2560, 9216, 32), _VISION_3_5_SMALL, tied=True),
}
"""Configurations of the models of `services.models.families.PUBLISHED`."""


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
    key_size: int
    """Numbers of a token's keys in all layers that keep them, and of its values: of all heads that
    have their own."""
    vocab_size: int
    vision_layers: int
    vision_hidden_size: int
    patch_size: int
    """Side of a patch of the image, in pixels."""

    @property
    def num_parameters(self) -> int:
        """All of them."""
        return self.tower + self.projector + self.language


@cache
def model_shape(path: str) -> ModelShape:
    """The shape of a model: a folder, a cached hub name, or a known one. No weights are read.

    Raises:
        SettingsError: It is refused.
        UnavailableError: It is of the hub, which was not reached.
    """
    import torch  # it and transformers take seconds, and many callers refuse before
    from transformers import AutoModelForImageTextToText

    config = model_config(path)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    visual = dict(model.model.visual.named_parameters())
    projector = sum(p.numel() for name, p in visual.items() if "merger" in name)
    vision = sum(p.numel() for p in visual.values())
    total = sum(p.numel() for p in model.parameters())
    text, seen = config.text_config, config.vision_config
    head_size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    recurrent = (getattr(text, "layer_types", None) or []).count("linear_attention")
    return ModelShape(
        tower=vision - projector,
        projector=projector,
        language=total - vision,
        hidden_size=text.hidden_size,
        intermediate_size=text.intermediate_size,
        num_layers=text.num_hidden_layers,
        key_size=text.num_key_value_heads * head_size * (text.num_hidden_layers - recurrent),
        vocab_size=text.vocab_size,
        vision_layers=seen.depth,
        vision_hidden_size=getattr(seen, "embed_dim", None) or seen.hidden_size,
        patch_size=seen.patch_size,
    )


def model_config(path: str) -> Any:
    """The configuration of a model, for transformers; known ones need no hub.

    Raises:
        SettingsError: It is refused.
        UnavailableError: It is of the hub, which was not reached.
    """
    from transformers import AutoConfig

    if path in KNOWN:
        return AutoConfig.for_model(PUBLISHED[path], **KNOWN[path])
    model_family(path)
    try:
        return AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise SettingsError(f"model.path: nothing is known of {path} here: {error}") from error
