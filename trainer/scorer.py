"""The policy as a function from a micro batch to log-probabilities."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from trainer.algorithms.logprobs import token_logprobs
from trainer.batch import MicroBatch


class Scored(NamedTuple):
    """What a model says of a micro batch's completions; 0 where there is no token.

    A tuple, for ZeRO-3 looks for the tensors in what a module returns.
    """

    logprobs: Tensor
    """[N, L] with gradient, in the distribution that the sampler drew from."""
    entropies: Tensor
    """[N, L] of that distribution, in nats, without gradient."""


class Scorer(nn.Module):  # type: ignore[misc]
    """A model, as DeepSpeed wraps it: all that is computed with its weights is inside `forward`.

    Args:
        model: A Hugging Face image-text-to-text model.
        temperature: Of sampling.
        suppressed_token_ids: Never sampled.
        chunk: Tokens whose logits exist at the same time.
    """

    def __init__(
        self,
        model: Any,
        *,
        temperature: float,
        suppressed_token_ids: Sequence[int],
        chunk: int,
    ) -> None:
        super().__init__()
        self.model = model
        self._temperature = temperature
        self._suppressed = list(suppressed_token_ids)
        self._chunk = chunk

    def forward(self, batch: MicroBatch) -> Scored:
        """Score a micro batch that is on the model's device."""
        hidden = self.model.model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            mm_token_type_ids=batch.mm_token_type_ids,
            pixel_values=batch.pixel_values,
            image_grid_thw=batch.image_grid_thw,
            use_cache=False,
        ).last_hidden_state
        here = batch.loss_mask.bool()
        logits = self.model.lm_head(hidden.flatten(0, 1)[batch.source[here]])
        found = token_logprobs(
            logits, batch.targets[here], temperature=self._temperature, suppressed=self._suppressed
        )
        logprobs = torch.zeros_like(batch.rollout_logprobs).masked_scatter(here, found)
        return Scored(logprobs=logprobs, entropies=torch.zeros_like(logprobs))
