"""The policy on a DeepSpeed engine."""

import math
import warnings
from collections.abc import Container, Iterable, Iterator, Sequence
from datetime import timedelta
from functools import partial
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers.integrations import HfDeepSpeedConfig

from services.errors import SettingsError
from services.host.environment import environment_value, set_environment
from services.host.gpu import GIB
from services.models.families import as_published, save_published
from services.settings import Settings
from trainer.algorithms.logprobs import SamplingDistribution, token_logprobs
from trainer.algorithms.losses import LossOutput, policy_loss, with_finite_guard
from trainer.batches.batch import MicroBatch, RopeIndex
from trainer.batches.mask_replay import MaskReplay
from trainer.policy.adapter import add_adapter, save_adapter
from trainer.policy.deepspeed.api import forget_gradients, gathered, init_distributed, initialize
from trainer.policy.deepspeed.config import deepspeed_config, sharding_config
from trainer.policy.export import exported, exported_parameters, num_bytes
from trainer.policy.gpu import cap_memory, check_cuda
from trainer.policy.logprob_model import (
    LogprobModel,
    LogprobOutput,
    Reference,
    logprobs_without_gradient,
)
from trainer.policy.model import load_model, load_processor, mask_replay, placeholder_ids
from trainer.policy.random_state import load_random_state, save_random_state
from trainer.policy.state_layout import check_layout, write_layout
from trainer.policy.updates import Pass, StepOutput, Update, in_order, step_stats
from trainer.ranks.group import check_num_ranks
from trainer.ranks.rendezvous import join_ranks
from weight_sync.shards import Shard, deal

_TAG = "deepspeed"
"""The name of DeepSpeed's part of a checkpoint."""


def init_process_group(timeout_s: float) -> None:
    """Join the trainer's processes: torchrun's, or this one alone; NCCL on GPUs, gloo on CPU."""
    check_cuda()
    # DeepSpeed's own calls, at every gather of ZeRO-3.
    warnings.filterwarnings("ignore", r"`torch\.distributed\..*is deprecated", FutureWarning)
    if environment_value("RANK") is None:
        alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
        for name, value in {**alone, "MASTER_PORT": "0"}.items():
            set_environment(name, value)
    backend, timeout = "nccl" if torch.cuda.is_available() else "gloo", timedelta(seconds=timeout_s)
    join_ranks(backend, timeout)
    init_distributed(backend, timeout)


class PolicyEngine:
    """The model being trained, its optimizer, and its processor.

    Args:
        settings: The run's. `init_process_group` must have been called.
        world_size: Number of the trainer's processes.

    Raises:
        SettingsError: The model cannot be loaded, or not be trained as the settings say.
    """

    def __init__(self, settings: Settings, world_size: int) -> None:
        check_num_ranks(settings.trainer, world_size)
        cap_memory(settings)
        self._settings = settings
        self._world_size = world_size
        self._rank = torch.distributed.get_rank()
        self.processor = load_processor(settings)
        self.suppressed_token_ids = placeholder_ids(self.processor.tokenizer)
        torch.manual_seed(settings.run.seed)  # of the adapter's start, the same on every rank
        config = deepspeed_config(settings)
        # As long as this lives, transformers gives each rank its shard while it loads.
        self._sharded = settings.deepspeed.zero_stage == 3
        self._sharding = HfDeepSpeedConfig(config) if self._sharded else None
        model = load_model(settings)
        self._adapter = add_adapter(model, settings) if settings.lora.rank else None
        self._model = model
        trained = [p for p in model.parameters() if p.requires_grad]
        self._engine, self._optimizer = initialize(self._logprob_model(model), config, trained)
        self.reference = self._make_reference() if settings.algorithm.beta else None
        """What the KL is measured against; None where `algorithm.beta` is 0."""

    @property
    def device(self) -> torch.device:
        """Where this rank computes."""
        return torch.device(self._engine.device)

    def mask_replay(self) -> MaskReplay | None:
        """Replays the run's grammar; None where there is none, or servers tell what they kept."""
        sampling = self._settings.sampling
        if sampling.top_k or not sampling.constrain:
            return None
        return mask_replay(self._model, self.processor.tokenizer)

    @property
    def rope_index(self) -> RopeIndex:
        """Lays out the positions of a prompt; takes no weights."""
        found: RopeIndex = self._model.model.get_rope_index
        return found

    def train_step(
        self, mini_batches: Sequence[Sequence[MicroBatch]], learning_rate: float
    ) -> StepOutput:
        """The updates of a step: one for each mini-batch, `algorithm.num_iterations` times.

        All of them take their ratios and corrections against the policy before the first. Where a
        log-probability, the loss or a gradient is not finite on any rank, no rank's optimizer makes
        that update: weights and optimizer stay as they are, and the next update follows.

        Args:
            mini_batches: [mini-batch][micro batch] of this rank, at least one of each; of any
                sizes, but as many on every rank, for with ZeRO-2 and 3 the ranks meet in each of
                them.
            learning_rate: This step's, in all of its updates.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._engine.train()
        passes = [[Pass(batch) for batch in mini_batch] for mini_batch in mini_batches]
        for one in chain.from_iterable(passes[1:]):  # those of the first see that policy anyway
            one.old_logprobs = logprobs_without_gradient(self._engine, one.batch.to(self.device))
        updates = [
            [self._update(mini_batch) for mini_batch in passes]
            for _ in range(self._settings.algorithm.num_iterations)
        ]
        return StepOutput(
            stats=step_stats(updates, self._world_size),
            grad_norms=[[update.grad_norm for update in iteration] for iteration in updates],
            policy_logprobs=in_order(chain.from_iterable(passes)),
        )

    def weights(self, writers: Sequence[int] = (0,)) -> Iterable[tuple[str, Tensor]]:
        """What a version consists of: copies on this rank's device, in the sampling dtype.

        Rank 0 gets it; with `ipc` every rank, for the server on its own GPU. Several writers share
        it: each rank gets a `Shard` with the tensors that are dealt to it.

        That is the adapter by PEFT's names, or every parameter by its checkpoint name but those
        of frozen parts: the servers have them from `model.path`.

        A collective: every rank must exhaust it.

        Args:
            writers: The ranks that write the version.
        """
        parameters = self._parameters(trainable_only=True)
        if len(writers) == 1:
            wanted = self._rank in writers or self._settings.weights.traits.same_gpu
            return _published(self._exported(parameters, wanted=wanted))
        sizes = {name: num_bytes(parameter, self._dtype) for name, parameter in parameters}
        owners = deal(sizes, writers)
        kept = {name for name, owner in owners.items() if owner == self._rank}
        return Shard(_published(self._exported(parameters, kept=kept)), sum(sizes.values()))

    def save_state(self, folder: Path) -> None:
        """Write weights, optimizer state and this rank's random state; every rank calls it.

        Frozen weights are not written: they are those of `model.path`.
        """
        self._engine.save_checkpoint(
            str(folder), tag=_TAG, save_latest=False, exclude_frozen_parameters=True
        )
        if self._rank == 0:
            write_layout(self._settings, folder)
        save_random_state(folder / f"rng-{self._rank}.pt")

    def load_state(self, folder: Path) -> None:
        """Continue from what `save_state` wrote, with the same number of ranks.

        Raises:
            SettingsError: It is of a run with other settings.
        """
        check_layout(self._settings, folder)
        path, _ = self._engine.load_checkpoint(str(folder), tag=_TAG, load_module_strict=False)
        if path is None:
            raise SettingsError(f"{folder} has no DeepSpeed state that this run can load")
        load_random_state(folder / f"rng-{self._rank}.pt")

    def save_pretrained(self, folder: Path) -> None:
        """Write model and processor in Hugging Face's format, or the adapter in PEFT's.

        A collective; rank 0 writes.
        """
        parameters = self._parameters(trainable_only=False)
        whole = self._exported(parameters, wanted=self._rank == 0)
        tensors = {name: tensor.cpu() for name, tensor in whole}
        if self._rank != 0:
            return
        folder.mkdir(parents=True, exist_ok=True)
        if self._adapter is not None:
            save_adapter(self._adapter, tensors, folder)
        else:
            save_published(self._model, folder, tensors)
        self.processor.save_pretrained(folder)

    def close(self) -> None:
        """Leave the process group."""
        self._engine.destroy()
        torch.distributed.destroy_process_group()

    def _update(self, passes: Sequence[Pass]) -> Update:
        """One optimizer step over a mini-batch.

        The parts of the loss add up over micro batches and ranks; DeepSpeed averages over ranks.
        """
        outputs: list[LossOutput] = []
        for i, one in enumerate(passes):
            batch = one.batch.to(self.device)
            if self.reference and one.ref_logprobs is None:
                one.ref_logprobs = self.reference.logprobs(batch)
            scored = self._engine(batch)
            if one.old_logprobs is None:
                one.old_logprobs = scored.logprobs.detach()
            output = self._loss(scored, batch, one)
            loss = with_finite_guard(output.loss, scored.logprobs)
            self._engine.set_gradient_accumulation_boundary(i == len(passes) - 1)
            self._engine.backward(loss * self._world_size)
            if i < len(passes) - 1:
                self._engine.step()
            outputs.append(output)
        return Update(outputs, self._optimizer_step())

    def _logprob_model(self, model: nn.Module) -> LogprobModel:
        drawn_from = SamplingDistribution(
            temperature=self._settings.sampling.temperature,
            suppressed=tuple(self.suppressed_token_ids),
        )
        score = partial(
            token_logprobs,
            distribution=drawn_from,
            chunk=self._settings.trainer.logprob_chunk,
            float32_logits=self._settings.model.head_dtype == "float32",
            float32_head=self._settings.trainer.float32_head,
        )
        return LogprobModel(model, score)

    def _make_reference(self) -> Reference:
        if self._adapter is not None:
            return Reference(self._engine, self._adapter.disable_adapter)
        model = self._logprob_model(load_model(self._settings)).requires_grad_(False)
        if not self._sharded:
            return Reference(model.to(self.device))
        sharded, _ = initialize(model, sharding_config(self._settings))
        return Reference(sharded)

    @property
    def _dtype(self) -> torch.dtype:
        """The sampling one."""
        found: torch.dtype = getattr(torch, self._settings.model.dtype)
        return found

    def _parameters(self, *, trainable_only: bool) -> list[tuple[str, nn.Parameter]]:
        return exported_parameters(
            self._model, adapter_only=self._adapter is not None, trainable_only=trainable_only
        )

    def _exported(
        self,
        parameters: Sequence[tuple[str, nn.Parameter]],
        *,
        wanted: bool = True,
        kept: Container[str] | None = None,
    ) -> Iterator[tuple[str, Tensor]]:
        return exported(
            parameters,
            gather=partial(gathered, enabled=self._sharded),
            bucket_bytes=int(self._settings.deepspeed.export_bucket_gib * GIB),
            dtype=self._dtype,
            wanted=wanted,
            kept=kept,
        )

    def _optimizer_step(self) -> float:
        """Make the step, unless a gradient is not finite; the norm over all ranks, before clipping.

        From stage 1 on DeepSpeed looks at the norm before its optimizer, and leaves the step out.
        At stage 0 gradients are whole and the same on every rank; in float32 nobody looks at them.
        """
        if self._settings.deepspeed.zero_stage == 0:
            grads = [p.grad for p in self._model.parameters() if p.grad is not None]
            norm = float(torch.nn.utils.get_total_norm(grads))
            if not math.isfinite(norm):
                self._engine.zero_grad()
                return norm
            self._engine.step()
            return float(self._engine.get_global_grad_norm() or norm)
        self._engine.step()
        if self._optimizer.overflow:
            forget_gradients(self._optimizer)
            return math.nan
        return float(self._engine.get_global_grad_norm())

    def _loss(self, scored: LogprobOutput, batch: MicroBatch, one: Pass) -> LossOutput:
        return policy_loss(
            self._settings.algorithm,
            scored.logprobs,
            batch.rollout_logprobs,
            batch.advantages,
            batch.loss_mask,
            batch.token_weights,
            entropies=scored.entropies,
            old_logprobs=one.old_logprobs,
            ref_logprobs=one.ref_logprobs,
            removed=scored.removed if batch.allowed is not None else None,
        )


def _published(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    return ((name, as_published(name, tensor)) for name, tensor in tensors)
