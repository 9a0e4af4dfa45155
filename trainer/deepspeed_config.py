"""DeepSpeed's JSON for a run."""

from typing import Any

import torch

from services.settings import Settings


def deepspeed_config(settings: Settings) -> dict[str, Any]:
    """What `deepspeed.initialize` gets.

    Micro batches differ in number and size from step to step, so the engine itself says which one
    is the last of a step, and the losses carry their own weights: DeepSpeed is not to divide by
    anything but the number of ranks.
    """
    trainer = settings.trainer
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": trainer.max_grad_norm,
        "zero_optimization": {"stage": settings.deepspeed.zero_stage},
        "bf16": {"enabled": settings.model.dtype == "bfloat16"},
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": trainer.learning_rate,
                "betas": list(trainer.betas),
                "weight_decay": trainer.weight_decay,
                # DeepSpeed's fused CPU Adam would be compiled at first use.
                "torch_adam": not torch.cuda.is_available(),
            },
        },
        "wall_clock_breakdown": False,
    }
