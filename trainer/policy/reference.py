"""What the KL is measured against: the start model, or the policy without its adapter."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from trainer.batches.batch import MicroBatch


class Reference:
    """Scores completions as the policy's `LogprobModel` does, without gradient.

    Args:
        scorer: Of the start model, frozen; or the policy's own.
        without_adapter: For the policy's own: opens a span in which its adapter is off.
    """

    def __init__(
        self,
        scorer: nn.Module,
        without_adapter: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self._scorer = scorer
        self._without_adapter = without_adapter

    def logprobs(self, batch: MicroBatch) -> Tensor:
        """ref_logprobs [N, L] of a micro batch that is on the model's device."""
        was_training = self._scorer.training
        self._scorer.eval()
        with torch.no_grad(), self._without_adapter():
            result: Tensor = self._scorer(batch).logprobs
        self._scorer.train(was_training)
        return result
