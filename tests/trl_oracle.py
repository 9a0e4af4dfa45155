"""TRL's own advantages and losses on given tensors: what ours are tested against.

`_prepare_inputs`, `_generate_and_score_completions` and `_compute_loss` are TRL's code. What needs
a model, a sampler or reward functions is replaced by tensors.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from trl import GRPOConfig, GRPOTrainer

END, OTHER, PAD = 1, 2, 0
"""Token ids: a completion that does not end in END is a truncated one to TRL."""
FIRST = 10
"""The prompt of completion i is the token FIRST + i, so that it is known where TRL has put it."""
OF_TRAINER = (
    "beta",
    "entropy_coef",
    "importance_sampling_level",
    "loss_type",
    "mask_truncated_completions",
    "max_completion_length",
    "multi_objective_aggregation",
    "num_generations",
    "num_iterations",
    "off_policy_mask_threshold",
    "pad_to_multiple_of",
    "scale_rewards",
    "top_entropy_quantile",
    "use_adaptive_entropy",
    "use_vllm",
    "vllm_importance_sampling_clip_max",
    "vllm_importance_sampling_clip_min",
    "vllm_importance_sampling_correction",
    "vllm_importance_sampling_mode",
)
"""Attributes that GRPOTrainer takes from its configuration as they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTensors:
    """One step of N completions, in groups, of at most L tokens; float64, 0 beyond their ends."""

    policy_logprobs: Tensor
    """[N, L] of the policy before the first update."""
    rollout_logprobs: Tensor
    """[N, L]"""
    ref_logprobs: Tensor
    """[N, L]"""
    entropies: Tensor
    """[N, L]"""
    lengths: Sequence[int]
    truncated: Sequence[bool]
    terms: Tensor
    """[N, K] reward terms."""
    term_weights: Tensor
    """[K]"""
    group_size: int


class TrlOracle(GRPOTrainer):  # type: ignore[misc]
    """A GRPOTrainer without a model.

    Args:
        step: What it is to compute with.
        config: Fields of GRPOConfig.
    """

    def __init__(self, step: StepTensors, *, steps_per_generation: int = 1, **config: Any) -> None:
        self.step = step
        self.policy: Callable[[], Tensor] = lambda: step.policy_logprobs
        self.args = GRPOConfig(
            per_device_train_batch_size=len(step.lengths) // steps_per_generation,
            steps_per_generation=steps_per_generation,
            gradient_accumulation_steps=1,
            num_generations=step.group_size,
            use_cpu=True,
            bf16=False,
            report_to="none",
            **config,
        )
        for name in OF_TRAINER:
            setattr(self, name, getattr(self.args, name))
        self.epsilon_low, self.epsilon_high = self.args.epsilon, self.args.epsilon_high or 0.2
        self.accelerator = Accelerator(cpu=True)
        self.model = SimpleNamespace(training=True, is_gradient_checkpointing=False)
        self.ref_model = SimpleNamespace()
        self.current_gradient_accumulation_steps = 1
        self.eos_token_ids, self._tokenizer = [END], SimpleNamespace(pad_token_id=PAD)
        self.reward_weights = step.term_weights
        self.reward_funcs = self.reward_func_names = [str(k) for k in range(step.terms.shape[1])]
        self.aux_loss_enabled = self._entropy_bonus_enabled = False
        self.environment_factories = self.environments = self.tools = None
        self._metrics: dict[str, Any] = {"train": defaultdict(list)}
        self._logs: dict[str, Any] = defaultdict(list, rewards=defaultdict(list))
        self._pending_extra_logs: dict[str, Any] = {}
        self._pending_metrics: dict[str, Any] = {}
        self._buffered_inputs = None

    def advantages_and_loss(self, old_logprobs: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Advantages [N] and the loss [], with gradient to `policy_logprobs`.

        Args:
            old_logprobs: [N, L] what the ratio starts from, in place of TRL's choice.
        """
        inputs = self._generate_and_score_completions([{"prompt": "p"}] * len(self.step.lengths))
        if old_logprobs is not None:
            inputs["old_per_token_logps"] = old_logprobs
        return inputs["advantages"], self._compute_loss(self.model, inputs)

    def update(self, number: int, policy: Callable[[], Tensor]) -> tuple[list[int], Tensor]:
        """The loss of an update, of which a step has num_iterations times steps_per_generation.

        Args:
            number: From 0.
            policy: Gives policy_logprobs [N, L] as they are now.

        Returns:
            Which completions TRL has put into the mini-batch, and the loss [].
        """
        self.policy, self._step = policy, number
        inputs = self._prepare_inputs([{"prompt": "p"}] * len(self.step.lengths))
        self._metrics["train"].clear()
        rows = inputs["prompt_ids"][:, 0] - FIRST
        return rows.tolist(), self._compute_loss(self.model, inputs)

    @property
    def names(self) -> set[str]:
        """Names of the step's metrics."""
        return set(self._metrics["train"])

    def logged(self, name: str) -> float:
        """A metric of the step."""
        (value,) = self._metrics["train"][name]
        return float(value)

    def _generate(self, prompts: list[Any]) -> tuple[Any, ...]:
        step = self.step
        ids = [
            [OTHER] * (length - 1) + [OTHER if cut else END]
            for length, cut in zip(step.lengths, step.truncated, strict=True)
        ]
        rows = zip(step.rollout_logprobs.tolist(), step.lengths, strict=True)
        logprobs = [row[:length] for row, length in rows]
        return (
            [[FIRST + i] for i in range(len(ids))],
            ids,
            None,
            ["" for _ in ids],
            logprobs,
            {},
            None,
            None,
        )

    def _calculate_rewards(self, *_: Any) -> Tensor:
        return self.step.terms

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor, None]:
        step, rows = self.step, input_ids[:, 0] - FIRST
        logprobs = step.ref_logprobs if model is self.ref_model else self.policy()
        if not torch.is_grad_enabled():
            logprobs = logprobs.detach()
        return logprobs[rows], step.entropies[rows], None
