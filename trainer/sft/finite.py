"""Steps of SFT whose gradients are not finite change nothing, and end the run where they go on."""

import logging
import math
from typing import Any

import torch
from transformers import TrainerCallback

from trainer.not_finite import MAX_SKIPPED, NotFiniteError
from trainer.policy.deepspeed_api import forget_gradients

logger = logging.getLogger(__name__)


class SkipsNotFinite(TrainerCallback):  # type: ignore[misc]
    """Counts skipped steps in a row.

    DeepSpeed's own optimizers skip them by themselves; at ZeRO stage 0 in float32 torch's is used,
    which makes no step where there are no gradients.
    """

    def __init__(self) -> None:
        self._in_row = 0
        self._optimizer: Any = None
        self._dropped = False

    def on_train_begin(
        self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any
    ) -> None:
        """Find DeepSpeed's optimizer below accelerate's."""
        self._optimizer = optimizer.optimizer
        if not hasattr(self._optimizer, "overflow"):
            self._optimizer.register_step_pre_hook(self._drop)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """See the class; the same on every rank.

        Raises:
            NotFiniteError: It was one too many.
        """
        skipped = getattr(self._optimizer, "overflow", self._dropped)
        self._in_row = self._in_row + 1 if skipped else 0
        if not skipped:
            return
        forget_gradients(self._optimizer)
        if self._in_row == MAX_SKIPPED:
            raise NotFiniteError(
                f"SFT: loss or gradients were not finite in {MAX_SKIPPED} steps in a row, the last "
                f"of them step {state.global_step}; none of them changed the weights. If those of "
                "model.path are whole, lower sft.learning_rate and go on with --resume"
            )
        if state.is_world_process_zero:
            logger.warning("step %d is skipped: its gradients are not finite", state.global_step)

    def _drop(self, optimizer: Any, *_: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        grads = [p.grad for p in parameters if p.grad is not None]
        self._dropped = not math.isfinite(float(torch.nn.utils.get_total_norm(grads)))
        if self._dropped:
            for parameter in parameters:
                parameter.grad = None
