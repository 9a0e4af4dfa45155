"""The models that this trains and serves, by the `model_type` of their config.json.

Scoring, publishing and sampling are tested on each one (`docs/models.md`). Another one is refused,
since it may well load and be trained on wrong log-probabilities.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from services.errors import SettingsError, UnavailableError
from services.models.chat_template import read_json_object
from services.settings import Settings

PAGE = "docs/models.md"
_HUB_PARTS = 2
"""Parts of a hub name: owner and name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFamily:
    """What depends on the architecture alone."""

    model_type: str
    """transformers' name of it."""
    box_space: Literal["relative_1000", "pixels"]
    """How its published models write boxes: thousandths, or pixels of the resized input."""
    patch_factor: int
    """Sides of a resized image are multiples of it: patch size times merge size, in pixels."""
    layers: frozenset[str] = frozenset({"full_attention"})
    """transformers' names of the layers that the trainer shares a prompt in."""


FAMILIES = {
    family.model_type: family
    for family in (
        ModelFamily(model_type="qwen2_vl", box_space="relative_1000", patch_factor=28),
        ModelFamily(model_type="qwen2_5_vl", box_space="pixels", patch_factor=28),
        ModelFamily(model_type="qwen3_vl", box_space="relative_1000", patch_factor=32),
        ModelFamily(model_type="qwen3_vl_moe", box_space="relative_1000", patch_factor=32),
        ModelFamily(
            model_type="qwen3_5",
            box_space="relative_1000",
            patch_factor=32,
            layers=frozenset({"full_attention", "linear_attention"}),
        ),
    )
}
"""By `model_type`."""

_EXPERTS = (".mlp.experts.gate_up_proj", ".mlp.experts.down_proj")
"""Qwen3-VL's mixtures: [experts, in, out] in checkpoints, [experts, out, in] in memory."""

_TIED = "tie_word_embeddings"

PUBLISHED = {
    "Qwen/Qwen2-VL-2B-Instruct": "qwen2_vl",
    "Qwen/Qwen2-VL-7B-Instruct": "qwen2_vl",
    "Qwen/Qwen2.5-VL-3B-Instruct": "qwen2_5_vl",
    "Qwen/Qwen2.5-VL-7B-Instruct": "qwen2_5_vl",
    "Qwen/Qwen2.5-VL-32B-Instruct": "qwen2_5_vl",
    "Qwen/Qwen2.5-VL-72B-Instruct": "qwen2_5_vl",
    "Qwen/Qwen3-VL-2B-Instruct": "qwen3_vl",
    "Qwen/Qwen3-VL-4B-Instruct": "qwen3_vl",
    "Qwen/Qwen3-VL-8B-Instruct": "qwen3_vl",
    "Qwen/Qwen3.5-4B": "qwen3_5",
}
"""`model_type` of the recipes' models, known without the hub."""


@cache
def model_family(path: str) -> ModelFamily:
    """The family of a model folder or hub name. Its config.json is read; no weights, no torch.

    Raises:
        SettingsError: There is no such model, or it is not one that this trains and serves.
        UnavailableError: It can only be of the hub, which was not reached.
    """
    if path in PUBLISHED and not Path(path).exists():
        return FAMILIES[PUBLISHED[path]]
    config = model_config(path)
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise SettingsError(_refusal(path, f"of model_type {model_type!r}"))
    if other := sorted(_layers(config) - FAMILIES[model_type].layers):
        raise SettingsError(_refusal(path, f"a {model_type} with {', '.join(other)}"))
    if model_type == "qwen3_vl_moe" and not config.get("text_config", config).get("norm_topk_prob"):
        what = "a qwen3_vl_moe without norm_topk_prob = true, by which transformers and vLLM differ"
        raise SettingsError(_refusal(path, what))
    text = config.get("text_config", config)
    if model_type == "qwen3_5" and len({c.get(_TIED) for c in (config, text)} - {None}) > 1:
        what = f"a qwen3_5 whose text_config has another {_TIED}, which vLLM reads and not this one"
        raise SettingsError(_refusal(path, what))
    return FAMILIES[model_type]


def with_box_space(settings: Settings) -> Settings:
    """The settings with their `box_space` decided: what a run records and sends is never `auto`.

    Raises:
        SettingsError: The model is refused, or writes boxes otherwise than `box_space` says.
        UnavailableError: See `model_family`.
    """
    model = settings.model
    family = model_family(model.path)
    if model.box_space == "auto":
        return settings.changed(model={"box_space": family.box_space})
    if model.box_space != family.box_space and not model.box_space_override:
        raise SettingsError(
            f"model.box_space = {model.box_space!r}: {model.path} is a {family.model_type}, whose "
            f"boxes are {family.box_space!r}. Set 'auto'; or, if this one was trained to write "
            f"{model.box_space}, model.box_space_override = true ({PAGE})"
        )
    return settings


def as_published(name: str, tensor: Any) -> Any:
    """A tensor of a model in memory as checkpoints have it, and vLLM reads it: mostly as it is."""
    return tensor.transpose(1, 2).contiguous() if name.endswith(_EXPERTS) else tensor


def save_published(model: Any, folder: Path, tensors: Mapping[str, Any]) -> None:
    """Write a model of transformers in its family's published layout.

    Args:
        model: Its configuration is written too.
        folder: Made where missing.
        tensors: By name, as they are in memory.
    """
    has_experts = any(name.endswith(_EXPERTS) for name in tensors)
    published = {name: as_published(name, tensor) for name, tensor in tensors.items()}
    # transformers would turn experts back to what they are in memory.
    model.save_pretrained(folder, state_dict=published, save_original_format=not has_experts)


def _refusal(path: str, what: str) -> str:
    return f"model.path: {path} is {what}. This trains and serves {', '.join(FAMILIES)} ({PAGE})"


def _layers(config: Mapping[str, Any]) -> set[str]:
    """Kinds of its layers by transformers' names, as far as it says them."""
    text = config.get("text_config", config)
    layers = text.get("layer_types")
    kinds = set(map(str, layers if isinstance(layers, list) else ()))
    return kinds | ({"sliding_attention"} if text.get("use_sliding_window") else set())


def model_config(path: str) -> dict[str, Any]:
    """The config.json of a model folder or hub name.

    Raises:
        SettingsError: There is no such model, or its config.json is not one.
        UnavailableError: It can only be of the hub, which was not reached.
    """
    file = Path(path) / "config.json"
    if not Path(path).exists():
        if len(path.split("/")) != _HUB_PARTS or path.startswith((".", "~", "/")):
            raise SettingsError(f"model.path: there is no {path} (seen from {Path.cwd()})")
        file = _of_the_hub(path)
    if not file.exists():
        raise SettingsError(
            f"model.path: {path} has no config.json: name the folder of a whole model ({PAGE})"
        )
    config = read_json_object(file)
    if not isinstance(config.get("text_config", {}), dict):
        raise SettingsError(f"model.path: {file} is not a model's config.json ({PAGE})")
    return config


def _of_the_hub(name: str) -> Path:
    """The name's config.json, of the local cache or fetched."""
    try:
        from huggingface_hub import hf_hub_download, try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError, RemoteEntryNotFoundError
    except ImportError as error:
        raise UnavailableError(
            f"model.path: there is no folder {name} here, and huggingface_hub is not installed"
        ) from error
    try:
        cached = try_to_load_from_cache(name, "config.json")
        return Path(cached if isinstance(cached, str) else hf_hub_download(name, "config.json"))
    except (RemoteEntryNotFoundError, HFValidationError) as error:
        raise SettingsError(f"model.path: {name} is no folder and no model: {error}") from error
    except OSError as error:
        raise UnavailableError(
            f"model.path: there is no folder {name} here, nor a copy of that name in the hub's "
            f"cache, and the hub did not give it ({type(error).__name__})"
        ) from error
