"""A low-rank adapter (LoRA, arXiv 2106.09685) in place of all weights, by PEFT."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from torch import Tensor, nn

from services.errors import SettingsError
from services.settings import Settings
from services.settings.training import LoraSettings

_NAME = "default"
"""PEFT's name of an only adapter, which stands in parameters' names and not in those of files."""


def lora_config(lora: LoraSettings) -> LoraConfig:
    """PEFT's settings of an adapter. B starts at zero: at first it changes nothing."""
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # it divides by the rank
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        bias="none",
    )


def add_adapter(model: Any, settings: Settings) -> PeftModel:
    """Put an adapter into a model's layers, in place, and freeze all else.

    The adapter has the model's dtype: DeepSpeed keeps its float32 copy.

    Raises:
        SettingsError: `lora.target_modules` names no layer, or one that is not adapted.
    """
    try:
        wrapped = get_peft_model(model, lora_config(settings.lora), autocast_adapter_dtype=False)
    except ValueError as error:
        raise SettingsError(f"lora.target_modules: {error}") from error
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    for name, parameter in model.named_parameters():
        if ".lora_" not in name:
            continue
        parameter.data = parameter.data.to(dtype)
        if "visual." in name:
            raise SettingsError(
                f"lora.target_modules takes in {name}: samplers adapt the language model only, so "
                "name its layers alone, such as '.*language_model.*\\.q_proj'"
            )
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer) and not isinstance(
            module.get_base_layer(), nn.Linear
        ):
            raise SettingsError(
                f"lora.target_modules takes in {name}: adapters are of linear layers only, such as "
                "'.*language_model.*\\.q_proj'"
            )
    return wrapped


def file_name(parameter: str) -> str:
    """A parameter's name in PEFT's files.

    Args:
        parameter: Its name in the model, such as `model.….q_proj.lora_A.default.weight`.

    Returns:
        Such as `base_model.model.model.….q_proj.lora_A.weight`.
    """
    return f"base_model.model.{parameter.replace(f'.{_NAME}.', '.')}"


def save_adapter(wrapped: PeftModel, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Write an adapter as `PeftModel.from_pretrained` and vLLM read it.

    Args:
        wrapped: What `add_adapter` gave.
        tensors: By `file_name`.
        folder: Exists.
    """
    save_file(dict(tensors), folder / "adapter_model.safetensors", metadata={"format": "pt"})
    wrapped.peft_config[_NAME].save_pretrained(str(folder))
