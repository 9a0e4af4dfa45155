"""What the KL is measured against: the start model, or the policy without its adapter."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trainer.batches.batch import MicroBatch


@dataclass(frozen=True, slots=True)
class Reference:
    """Gives log-probabilities as the policy's `LogprobModel` does, without gradient."""

    model: nn.Module
    """The start model's, frozen; or the policy's own."""
    without_adapter: Callable[[], AbstractContextManager[Any]] = nullcontext
    """For the policy's own: opens a span in which its adapter is off."""

    def logprobs(self, batch: MicroBatch) -> Tensor:
        """ref_logprobs [N, L] of a micro batch that is on the model's device."""
        was_training = self.model.training
        self.model.eval()
        with torch.no_grad(), self.without_adapter():
            result: Tensor = self.model(batch).logprobs
        self.model.train(was_training)
        return result
