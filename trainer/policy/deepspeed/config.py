"""DeepSpeed's JSON for a run: generated from the settings, with the user's own over it."""

import json
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any

import torch

from services.errors import SettingsError
from services.settings import Settings
from services.settings.deepspeed_json import is_stage, read_deepspeed_json
from trainer.policy.deepspeed.api import optimizer_problems, zero_problems

_BUCKET_ELEMENTS = 200_000_000
"""Elements of gradients reduced, and of parameters gathered, at a time: 0.4 GB in bfloat16."""
_TRAINERS = {
    "train_batch_size": "trainer.groups_per_step and trainer.group_size",
    "train_micro_batch_size_per_gpu": "trainer.tokens_per_micro_batch",
    "gradient_accumulation_steps": "trainer.tokens_per_micro_batch",
    "managed_gradient_accumulation": "trainer.tokens_per_micro_batch",
    "gradient_clipping": "trainer.max_grad_norm",
    "bf16": "model.dtype",
    "bfloat16": "model.dtype",
    "fp16": "model.dtype",
    "amp": "model.dtype",
    "scheduler": "trainer.lr_schedule and trainer.warmup_steps",
    "optimizer.params.lr": "trainer.learning_rate",
    "zero_optimization.stage": "deepspeed.zero_stage",
    "zero_optimization.compute_grad_norm": "trainer.max_grad_norm",
}
"""Keys that the user's own JSON may not decide otherwise, and the settings that do."""
_OFF = {"fp16": {"enabled": False}, "amp": {"enabled": False}}
"""What a run says of them, though it writes nothing."""
_ALIKE = 0.9
"""Likeness by difflib of a misspelt key and the one that is meant; real keys are less alike."""
_SECTIONS = ("zero_optimization", "optimizer", "optimizer.params")
"""Keys that hold an object."""


def deepspeed_config(settings: Settings) -> dict[str, Any]:
    """What `deepspeed.initialize` gets.

    Micro batches differ in number and size from step to step, so the engine itself says which one
    is the last of a step, and the losses carry their own weights: DeepSpeed is not to divide by
    anything but the number of ranks.

    Raises:
        SettingsError: `deepspeed.config_file` is missing or malformed, or decides what is the
            trainer's; all such keys are named.
    """
    generated = _generated(settings)
    file = settings.deepspeed.config_file
    if file is None:
        return generated
    own = read_deepspeed_json(file)
    problems = [*_wrong_types(own)] or [*_not_the_users(own, generated)]
    if not problems:
        merged = _merged(generated, own, settings)
        zero, optimizer = merged["zero_optimization"], merged["optimizer"]
        problems = [*_misspelt(own), *zero_problems(zero), *optimizer_problems(optimizer)]
    if problems:
        raise SettingsError(
            f"deepspeed.config_file = '{file}' does not go with this run (docs/training.md):\n"
            + "\n".join(f"  {problem}" for problem in problems)
        )
    return merged


def sharding_config(settings: Settings) -> dict[str, Any]:
    """For a model that is sharded as the policy is, and never trained."""
    config = deepspeed_config(settings)
    zero = config["zero_optimization"]
    kept = {key: value for key, value in zero.items() if key != "offload_optimizer"}
    kept_keys = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "bf16")
    return {key: config[key] for key in kept_keys} | {"zero_optimization": kept}


def _generated(settings: Settings) -> dict[str, Any]:
    trainer = settings.trainer
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": trainer.max_grad_norm,
        "zero_optimization": _zero(settings),
        "bf16": {"enabled": settings.model.dtype == "bfloat16"},
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": trainer.learning_rate,
                "betas": list(trainer.betas),
                "weight_decay": trainer.weight_decay,
                # torch's own kernel, on GPUs and, offloaded or not, on CPUs. DeepSpeed's FusedAdam
                # and CPUAdam are compiled at first use.
                "torch_adam": True,
                "fused": True,
            },
        },
        "wall_clock_breakdown": False,
    }
    if settings.deepspeed.zero_stage > 0:
        # Many micro batches would lose the small ones' gradients in bfloat16. At stage 0 DeepSpeed
        # accumulates in the parameters' own type only.
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    return config


def _zero(settings: Settings) -> dict[str, Any]:
    wanted, on_gpu = settings.deepspeed, torch.cuda.is_available()
    offload = {"device": "cpu", "pin_memory": on_gpu}
    zero: dict[str, Any] = {
        "stage": wanted.zero_stage,
        "compute_grad_norm": True,  # what finds NaN and infinity before the optimizer
        "contiguous_gradients": True,
        "overlap_comm": on_gpu,
        "reduce_bucket_size": _BUCKET_ELEMENTS,
        "allgather_bucket_size": _BUCKET_ELEMENTS,
    }
    if wanted.offload_optimizer:
        zero["offload_optimizer"] = dict(offload)
    if wanted.offload_parameters:
        zero["offload_param"] = dict(offload)
    return zero


def _wrong_types(own: Mapping[str, Any]) -> Iterator[str]:
    named = dict(_named(own))
    for name in _SECTIONS:
        if not isinstance(section := named.get(name, {}), dict):
            yield f"{name} is {json.dumps(section)}: an object is wanted"
    stage = named.get("zero_optimization.stage")
    if stage is not None and not is_stage(stage):
        yield f'zero_optimization.stage is {stage!r}: a number from 0 to 3 is wanted, or "auto"'


def _misspelt(own: Mapping[str, Any]) -> Iterator[str]:
    """DeepSpeed passes over a key of the top level that it does not know."""
    known = {name.split(".")[0] for name in (*_TRAINERS, *_SECTIONS)}
    for key in own.keys() - known:
        for meant in get_close_matches(key.lower(), known, n=1, cutoff=_ALIKE):
            yield f"{key}: DeepSpeed does not know it; is {meant} meant?"


def _not_the_users(own: Mapping[str, Any], generated: Mapping[str, Any]) -> Iterator[str]:
    """What is said twice with one value is no contradiction."""
    ours = dict(_named({**_OFF, **generated}))
    for name, value in _named(own):
        if name in _TRAINERS and value != ours.get(name):
            found = value if not isinstance(value, dict) else value.get("enabled", value)
            yield f'{name} ({found}): remove it, or write "auto"; set {_TRAINERS[name]}'


def _named(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """All values by their dotted names, objects too."""
    for key, value in tree.items():
        yield prefix + key, value
        if isinstance(value, dict):
            yield from _named(value, f"{prefix}{key}.")


def _merged(generated: dict[str, Any], own: dict[str, Any], settings: Settings) -> dict[str, Any]:
    optimizer = own.get("optimizer", {})
    if str(optimizer.get("type", "AdamW")).lower() != "adamw":
        # Another optimizer has other parameters; of ours it keeps the rate that every step sets.
        rate = settings.trainer.learning_rate
        generated = generated | {"optimizer": {"params": {"lr": rate}}}
    elif not optimizer.get("params", {}).get("torch_adam", True):
        del generated["optimizer"]["params"]["fused"]  # unknown to DeepSpeed's own
    return _over(generated, own)


def _over(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Two trees in one; `above` wins."""
    result = dict(below)
    for key, value in above.items():
        both = isinstance(below.get(key), dict) and isinstance(value, dict)
        result[key] = _over(below[key], value) if both else value
    return result
