"""The policy and its processor, as the run wants them: dtype, frozen parts, pixel limits."""

from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils.logging import disable_progress_bar

from services.errors import SettingsError
from services.models.chat_template import chat_template
from services.models.families import model_family
from services.settings import Settings
from services.settings.training import TrainerSettings
from trainer.batches.mask_replay import MaskReplay

PLACEHOLDERS = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
"""Tokens that stand for visual input in Qwen's prompts; sampled in an answer they would shift the
features."""


def load_processor(settings: Settings) -> Any:
    """The processor of the policy, with the run's pixel limits.

    Raises:
        SettingsError: `model.path` cannot be loaded.
    """
    model = settings.model
    try:
        processor = AutoProcessor.from_pretrained(
            model.path,
            size={"shortest_edge": model.min_pixels, "longest_edge": model.max_pixels},
        )
    except (OSError, ValueError) as error:
        raise SettingsError(f"model.path: no processor at {model.path}: {error}") from error
    processor.chat_template = processor.chat_template or chat_template(model.path)
    return processor


def load_model(settings: Settings) -> Any:
    """The policy in the run's dtype, frozen where the run asks for it.

    Where DeepSpeed shards models (`HfDeepSpeedConfig`), this rank gets its shard.

    Raises:
        SettingsError: `model.path` cannot be loaded, is not whole, or is of a family that this
            does not train.
    """
    _check_dtype(settings)
    model = _whole_model(settings.model.path, getattr(torch, settings.model.dtype))
    freeze(model, settings.trainer)
    if settings.trainer.gradient_checkpointing:
        # Not reentrant: that would give the layers after a frozen embedding no gradient. The check
        # of shapes is off, for with ZeRO-3 a parameter is a shard again when it is compared.
        model.gradient_checkpointing_enable(
            gradient_checkpointing_kwargs={"use_reentrant": False, "determinism_check": "none"}
        )
    return model


def _whole_model(path: str, dtype: torch.dtype) -> Any:
    """The model as it is in its files: transformers makes up tensors that are not there."""
    model_family(path)
    disable_progress_bar()  # of loading and saving: a run's own table is on the terminal
    try:
        model, report = AutoModelForImageTextToText.from_pretrained(
            path, dtype=dtype, output_loading_info=True
        )
    except (OSError, ValueError) as error:
        raise SettingsError(f"model.path: no model at {path}: {error}") from error
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        raise SettingsError(
            f"model.path: tensors in {path} have other shapes than its config.json says (the log "
            "has them): it is the config of another model"
        ) from error
    if missing := sorted(report["missing_keys"]):
        raise SettingsError(
            f"model.path: the weights in {path} lack {len(missing)} tensors that its config.json "
            f"asks for ({', '.join(missing[:2])}): copy or download it again"
        )
    return model


def freeze(model: Any, trainer: TrainerSettings) -> None:
    """Take gradients from the parts that the `trainer.freeze_*` flags name.

    The projector is what merges patches into tokens: Qwen2-VL and Qwen2.5-VL have one at the
    tower's end, Qwen3-VL more on the way (`deepstack_merger_list`).
    """
    visual = model.model.visual
    projector = [p for name, p in visual.named_parameters() if "merger" in name]
    projector_ids = {id(p) for p in projector}
    tower = [p for p in visual.parameters() if id(p) not in projector_ids]
    language = [*model.model.language_model.parameters(), *model.lm_head.parameters()]
    frozen = (
        (trainer.freeze_vision_tower, tower),
        (trainer.freeze_projector, projector),
        (trainer.freeze_language_model, language),
    )
    for wanted, parameters in frozen:
        for parameter in parameters if wanted else ():
            parameter.requires_grad_(False)


def mask_replay(model: Any, tokenizer: Any) -> MaskReplay:
    """Replays a grammar as vLLM has it for this model.

    A text ends with the tokenizer's end, or one of `generation_config.json`.
    """
    ends = model.generation_config.eos_token_id
    found = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
    return MaskReplay(tokenizer, model.config.text_config.vocab_size, sorted(found))


def placeholder_ids(tokenizer: Any) -> list[int]:
    """Ids of the visual placeholders that this tokenizer knows."""
    vocabulary = tokenizer.get_vocab()
    return [vocabulary[token] for token in PLACEHOLDERS if token in vocabulary]


def _check_dtype(settings: Settings) -> None:
    wants_bfloat16 = settings.model.dtype == "bfloat16"
    if wants_bfloat16 and torch.cuda.is_available() and not torch.cuda.is_bf16_supported(False):
        raise SettingsError(
            f"model.dtype = 'bfloat16': {torch.cuda.get_device_name()} cannot compute in it; set "
            "'float32'"
        )
