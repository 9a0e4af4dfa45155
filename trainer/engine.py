"""The policy on a DeepSpeed engine. The only file that imports deepspeed."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import deepspeed
import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

from services.errors import SettingsError
from services.settings import Settings, TrainerSettings, environment_value, set_environment
from trainer.algorithms.grpo import LossOutput, grpo_loss
from trainer.algorithms.logprobs import token_logprobs
from trainer.batch import MicroBatch
from trainer.types import StepStats

logger = logging.getLogger(__name__)

PLACEHOLDERS = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
"""Tokens that stand for visual input in Qwen's prompts; sampled in an answer they would shift the
features."""


def init_process_group(timeout_s: float) -> None:
    """Join the trainer's processes: torchrun's, or this one alone; NCCL on GPUs, gloo on CPU."""
    from datetime import timedelta

    if environment_value("RANK") is None:
        alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
        for name, value in {**alone, "MASTER_PORT": "0"}.items():
            set_environment(name, value)
    deepspeed.init_distributed(
        dist_backend="nccl" if torch.cuda.is_available() else "gloo",
        timeout=timedelta(seconds=timeout_s),
        verbose=False,
    )


class PolicyEngine:
    """The model being trained, its optimizer, and its processor.

    Args:
        settings: Of the run. `init_process_group` must have been called.
        world_size: Number of the trainer's processes.
    """

    def __init__(self, settings: Settings, world_size: int) -> None:
        self._settings = settings
        self.processor = load_processor(settings)
        model = load_model(settings)
        self.image_token_id = int(model.config.image_token_id)
        self.suppressed_token_ids = placeholder_ids(self.processor.tokenizer)
        trainable = [p for p in model.parameters() if p.requires_grad]
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=model,
            model_parameters=trainable,
            config=deepspeed_config(settings, world_size),
        )

    @property
    def device(self) -> torch.device:
        """Where this rank computes."""
        return torch.device(self._engine.device)

    def train_step(self, batches: Sequence[MicroBatch], step: int) -> StepStats:
        """One optimizer step over this rank's micro batches.

        The gradient is the mean over micro batches and ranks, all of one size, so it is that of the
        mean over all completions of the step.

        Args:
            batches: As many as the gradient accumulation steps of the engine.
            step: From 0, for the learning rate.
        """
        rate = self._set_learning_rate(step)
        self._engine.train()
        outputs: list[LossOutput] = []
        logprobs: list[list[float]] = []
        for batch in batches:
            batch = batch.to(self.device)
            policy_logprobs = self.policy_logprobs(batch)
            output = self._loss(policy_logprobs, batch)
            self._engine.backward(output.loss)
            self._engine.step()
            outputs.append(output)
            logprobs += _completion_values(policy_logprobs.detach(), batch.loss_mask)
        return StepStats(
            loss=_mean(float(o.loss.detach()) for o in outputs),
            grad_norm=float(self._engine.get_global_grad_norm() or 0.0),
            learning_rate=rate,
            ratio_mean=_mean(o.ratio_mean for o in outputs),
            clip_fraction=_mean(o.clip_fraction for o in outputs),
            mismatch_kl=_mean(o.mismatch_kl for o in outputs),
            mismatch_max=max(o.mismatch_max for o in outputs),
            policy_logprobs=logprobs,
        )

    def policy_logprobs(self, batch: MicroBatch) -> Tensor:
        """[B, S - 1] log-probability of each next token; meaningful where `loss_mask` is 1."""
        first = int(
            batch.loss_mask.argmax(dim=1).min()
        )  # no logits for what every row has as prompt
        length = batch.input_ids.shape[1]
        logits = self._engine(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            mm_token_type_ids=batch.mm_token_type_ids,
            pixel_values=batch.pixel_values,
            image_grid_thw=batch.image_grid_thw,
            logits_to_keep=length - first,
            use_cache=False,
        ).logits
        scored = token_logprobs(
            logits[:, :-1],
            self._reachable(batch.input_ids[:, first + 1 :]),
            temperature=self._settings.sampling.temperature,
            suppressed=self.suppressed_token_ids,
        )
        return torch.nn.functional.pad(scored, (first, 0))

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor of the policy by its checkpoint name, on the CPU, in the sampling dtype."""
        dtype = getattr(torch, self._settings.model.dtype)
        seen: set[int] = set()
        for name, tensor in self._engine.module.state_dict().items():
            if tensor.data_ptr() in seen and "lm_head" in name:
                continue  # tied to the input embedding
            seen.add(tensor.data_ptr())
            yield name, tensor.detach().to(device="cpu", dtype=dtype).contiguous()

    def save_state(self, folder: Path) -> None:
        """Write weights, optimizer state and this rank's random state; every rank calls it."""
        self._engine.save_checkpoint(str(folder), tag="deepspeed", save_latest=False)
        rank = torch.distributed.get_rank()
        torch.save(torch.get_rng_state(), folder / f"rng-{rank}.pt")

    def load_state(self, folder: Path) -> None:
        """Continue from what `save_state` wrote, with the same number of ranks."""
        path, _ = self._engine.load_checkpoint(str(folder), tag="deepspeed")
        if path is None:
            raise SettingsError(f"{folder} has no DeepSpeed state that this run can load")
        rank = torch.distributed.get_rank()
        torch.set_rng_state(torch.load(folder / f"rng-{rank}.pt", weights_only=True))

    def save_pretrained(self, folder: Path) -> None:
        """Write model and processor in Hugging Face format."""
        self._engine.module.save_pretrained(folder)
        self.processor.save_pretrained(folder)

    def close(self) -> None:
        """Leave the process group."""
        self._engine.destroy()
        torch.distributed.destroy_process_group()

    def _reachable(self, targets: Tensor) -> Tensor:
        """Targets with placeholders replaced: in prompts, the only place, they have no score."""
        blocked = torch.tensor(self.suppressed_token_ids, device=targets.device)
        return targets.masked_fill(torch.isin(targets, blocked), 0)

    def _loss(self, policy_logprobs: Tensor, batch: MicroBatch) -> LossOutput:
        trainer = self._settings.trainer
        return grpo_loss(
            policy_logprobs,
            batch.rollout_logprobs,
            batch.advantages,
            batch.loss_mask,
            clip_low=trainer.clip_low,
            clip_high=trainer.clip_high,
        )

    def _set_learning_rate(self, step: int) -> float:
        rate = learning_rate(self._settings.trainer, step)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        return rate


def learning_rate(trainer: TrainerSettings, step: int) -> float:
    """Of a step, from 0; a function of settings alone, so a resume has nothing to restore."""
    if step < trainer.warmup_steps:
        return trainer.learning_rate * (step + 1) / trainer.warmup_steps
    if trainer.lr_schedule == "constant":
        return trainer.learning_rate
    left = trainer.num_steps - step
    return trainer.learning_rate * left / (trainer.num_steps - trainer.warmup_steps)


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
    """The policy in the run's dtype, with the vision tower frozen if the run asks for it.

    Raises:
        SettingsError: `model.path` cannot be loaded.
    """
    try:
        model = AutoModelForImageTextToText.from_pretrained(
            settings.model.path, dtype=getattr(torch, settings.model.dtype)
        )
    except (OSError, ValueError) as error:
        raise SettingsError(f"model.path: no model at {settings.model.path}: {error}") from error
    if settings.trainer.freeze_vision:
        model.model.visual.requires_grad_(False)
    return model


def placeholder_ids(tokenizer: Any) -> list[int]:
    """Ids of the visual placeholders that this tokenizer knows."""
    vocabulary = tokenizer.get_vocab()
    return [vocabulary[token] for token in PLACEHOLDERS if token in vocabulary]


def deepspeed_config(settings: Settings, world_size: int) -> dict[str, Any]:
    """DeepSpeed's JSON for a run."""
    trainer = settings.trainer
    per_rank = trainer.groups_per_step * trainer.group_size // world_size
    return {
        "train_micro_batch_size_per_gpu": trainer.micro_batch_size,
        "gradient_accumulation_steps": per_rank // trainer.micro_batch_size,
        "gradient_clipping": trainer.max_grad_norm,
        "zero_optimization": {"stage": trainer.zero_stage},
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


def _completion_values(values: Tensor, loss_mask: Tensor) -> list[list[float]]:
    return [row[mask.bool()].tolist() for row, mask in zip(values, loss_mask, strict=True)]


def _mean(values: Iterator[float]) -> float:
    items = list(values)
    return sum(items) / len(items)
