"""The policy and its processor, as the run wants them: dtype, frozen parts, pixel limits."""

from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from services.errors import SettingsError
from services.settings import Settings

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
        return AutoProcessor.from_pretrained(
            model.path,
            size={"shortest_edge": model.min_pixels, "longest_edge": model.max_pixels},
        )
    except (OSError, ValueError) as error:
        raise SettingsError(f"model.path: no processor at {model.path}: {error}") from error


def load_model(settings: Settings) -> Any:
    """The policy in the run's dtype, frozen where the run asks for it.

    Raises:
        SettingsError: `model.path` cannot be loaded.
    """
    try:
        model = AutoModelForImageTextToText.from_pretrained(
            settings.model.path, dtype=getattr(torch, settings.model.dtype)
        )
    except (OSError, ValueError) as error:
        raise SettingsError(f"model.path: no model at {settings.model.path}: {error}") from error
    freeze(model, settings)
    return model


def freeze(model: Any, settings: Settings) -> None:
    """Take gradients from the parts that the `trainer.freeze_*` flags name."""
    trainer, visual = settings.trainer, model.model.visual
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


def placeholder_ids(tokenizer: Any) -> list[int]:
    """Ids of the visual placeholders that this tokenizer knows."""
    vocabulary = tokenizer.get_vocab()
    return [vocabulary[token] for token in PLACEHOLDERS if token in vocabulary]
