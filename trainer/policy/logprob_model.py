"""The policy as a function from a micro batch to log-probabilities."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from services.errors import SettingsError
from trainer.algorithms.logprobs import AllowedTokens, KeptTokens, TokenScores
from trainer.batches.batch import MicroBatch
from trainer.policy.grouped.attention import use_grouped_attention
from trainer.policy.grouped.recurrent_layers import use_grouped_recurrence

Score = Callable[..., TokenScores]
"""[T, hidden_size] states, the head's weight, [T] tokens and `allowed` to what is said of these:
`algorithms.logprobs.token_logprobs`, in the distribution that the tokens were drawn from."""


class LogprobOutput(NamedTuple):
    """What a model says of a micro batch's completions; 0 where there is no token.

    A tuple, because ZeRO-3 looks for tensors in what a module gives back.
    """

    logprobs: Tensor
    """[N, L] with gradient, in the distribution that the sampler drew from."""
    entropies: Tensor
    """[N, L] of that distribution, in nats, without gradient."""
    removed: Tensor
    """[N, L] probability that a grammar or `top_k` took away, 0..1; 0 where there is none."""


class LogprobModel(nn.Module):  # type: ignore[misc]
    """A model, as DeepSpeed wraps it: all that is computed with its weights is inside `forward`.

    The layers that mix tokens are made to read a batch's layout; nothing else of the model changes,
    and its vision tower keeps its own attention.

    Args:
        model: A Hugging Face image-text-to-text model.
        score: What the head gives.
    """

    def __init__(self, model: Any, score: Score) -> None:
        super().__init__()
        use_grouped_attention(model)
        use_grouped_recurrence(model)
        self.model = model
        self.head = _Head(model.lm_head, score)

    def forward(self, batch: MicroBatch) -> LogprobOutput:
        """Score a micro batch that is on the model's device."""
        hidden = self.model.model(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            layout=batch.layout,
            pixel_values=batch.pixel_values,
            image_grid_thw=batch.image_grid_thw,
            use_cache=False,
        ).last_hidden_state
        scores = self.head(
            hidden.flatten(0, 1)[batch.source],
            batch.targets.flatten()[batch.slot],
            batch.allowed,
        )
        return LogprobOutput(
            *(_placed(values, batch.slot, batch.targets.shape) for values in scores)
        )


class _Head(nn.Module):  # type: ignore[misc]
    """The model's output layer, from states to log-probabilities.

    It holds the layer's own weight, so that ZeRO-3, which gathers a module's parameters around its
    forward and its backward pass, does so here.
    """

    def __init__(self, layer: nn.Linear, score: Score) -> None:
        super().__init__()
        if hasattr(layer, "base_layer"):
            raise SettingsError(
                "lora.target_modules names the output layer, which is used by its weight alone: "
                "leave lm_head out"
            )
        self.weight = layer.weight
        self._score = score

    def forward(
        self, hidden: Tensor, targets: Tensor, allowed: AllowedTokens | KeptTokens | None
    ) -> TokenScores:
        """[T, hidden_size] states and [T] tokens to what is said of these."""
        return self._score(hidden, self.weight, targets, allowed=allowed)


@dataclass(frozen=True, slots=True)
class Reference:
    """What the KL is measured against: the start model, or the policy without its adapter."""

    model: nn.Module
    """The start model's, frozen; or the policy's own."""
    without_adapter: Callable[[], AbstractContextManager[Any]] = nullcontext
    """For the policy's own: opens a span in which its adapter is off."""

    def logprobs(self, batch: MicroBatch) -> Tensor:
        """ref_logprobs [N, L] of a micro batch on the model's device, without gradient."""
        with self.without_adapter():
            return logprobs_without_gradient(self.model, batch)


def logprobs_without_gradient(model: nn.Module, batch: MicroBatch) -> Tensor:
    """[N, L] of a `LogprobModel`, or of an engine around one, on its device."""
    was_training = model.training
    model.eval()
    with torch.no_grad():
        result: Tensor = model(batch).logprobs
    model.train(was_training)
    return result


def _placed(values: Tensor, slot: Tensor, shape: torch.Size) -> Tensor:
    """[T] values at their places of [N, L]; 0 elsewhere."""
    return values.new_zeros(shape.numel()).index_copy(0, slot, values).view(shape)
