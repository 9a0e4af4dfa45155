"""What TRL and DeepSpeed get from `[sft]`, `[trainer]` and `[deepspeed]`."""

from typing import Any

import torch
from trl import SFTConfig

from services.settings import Settings
from services.settings.checks import num_micro_batches
from trainer.policy.deepspeed.config import deepspeed_config

LOG_EVERY = 20
"""Steps; a short run logs more often."""
_BETAS = (0.9, 0.95)
_WEIGHT_DECAY = 0.01


def sft_arguments(settings: Settings, *, total_steps: int) -> SFTConfig:
    """TRL's settings of a run.

    Make them before the model is loaded: with ZeRO-3 this is what shards it while it loads.

    Args:
        settings: The run's.
        total_steps: Optimizer steps of the run.
    """
    sft, has_gpu = settings.sft, torch.cuda.is_available()
    return SFTConfig(
        output_dir=str(settings.run.files.checkpoints),
        max_steps=total_steps,
        per_device_train_batch_size=sft.micro_batch_size,
        gradient_accumulation_steps=num_micro_batches(settings),
        learning_rate=sft.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=sft.warmup_steps,
        adam_beta1=_BETAS[0],
        adam_beta2=_BETAS[1],
        weight_decay=_WEIGHT_DECAY,
        max_grad_norm=settings.trainer.max_grad_norm,
        bf16=settings.model.dtype == "bfloat16",
        gradient_checkpointing=settings.trainer.gradient_checkpointing,
        max_length=None,
        seed=settings.run.seed,
        logging_steps=max(1, min(LOG_EVERY, total_steps // 10)),
        save_steps=sft.checkpoint_every,
        save_total_limit=1,
        remove_unused_columns=False,
        dataloader_pin_memory=has_gpu,
        use_cpu=not has_gpu,
        ddp_backend="nccl" if has_gpu else "gloo",
        disable_tqdm=True,
        report_to="none",
        deepspeed=sft_deepspeed_config(settings),
    )


def sft_deepspeed_config(settings: Settings) -> dict[str, Any]:
    """DeepSpeed's JSON: the GRPO trainer's memory layout, with SFT's batches and optimizer.

    Here transformers counts the micro batches, and checks that both sides say the same.
    """
    sft = settings.sft
    config = deepspeed_config(settings)
    zero = config["zero_optimization"]
    if zero["stage"] == 3:
        zero = zero | {"stage3_gather_16bit_weights_on_model_save": True}
    optimizer = config["optimizer"]
    ours = {"lr": sft.learning_rate, "betas": list(_BETAS), "weight_decay": _WEIGHT_DECAY}
    params = optimizer["params"] | {k: v for k, v in ours.items() if k in optimizer["params"]}
    return config | {
        "train_micro_batch_size_per_gpu": sft.micro_batch_size,
        "gradient_accumulation_steps": num_micro_batches(settings),
        "zero_optimization": zero,
        "optimizer": optimizer | {"params": params},
    }
