"""The policy on a DeepSpeed engine. The only file that imports deepspeed."""

import logging
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path

import deepspeed
import torch
from torch import Tensor

from services.errors import SettingsError
from services.settings import Settings, environment_value, set_environment
from trainer.algorithms.losses import LossOutput, policy_loss
from trainer.algorithms.stats import Stats
from trainer.batch import MicroBatch, RopeIndex
from trainer.deepspeed_config import deepspeed_config
from trainer.model import load_model, load_processor, placeholder_ids
from trainer.scorer import Scored, Scorer
from trainer.types import StepOutput

logger = logging.getLogger(__name__)


def init_process_group(timeout_s: float) -> None:
    """Join the trainer's processes: torchrun's, or this one alone; NCCL on GPUs, gloo on CPU."""
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
        self._world_size = world_size
        self.processor = load_processor(settings)
        model = load_model(settings)
        self.image_token_id = int(model.config.image_token_id)
        self.suppressed_token_ids = placeholder_ids(self.processor.tokenizer)
        self._model = model
        self._scorer = Scorer(
            model,
            temperature=settings.sampling.temperature,
            suppressed_token_ids=self.suppressed_token_ids,
            chunk=settings.trainer.logprob_chunk,
        )
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=self._scorer,
            model_parameters=[p for p in model.parameters() if p.requires_grad],
            config=deepspeed_config(settings),
        )

    @property
    def device(self) -> torch.device:
        """Where this rank computes."""
        return torch.device(self._engine.device)

    @property
    def rope_index(self) -> RopeIndex:
        """Lays out the positions of a prompt; takes no weights."""
        found: RopeIndex = self._model.model.get_rope_index
        return found

    def train_step(self, batches: Sequence[MicroBatch], learning_rate: float) -> StepOutput:
        """One optimizer step over this rank's micro batches.

        The parts of the loss add up over micro batches and ranks; DeepSpeed averages over ranks.

        Args:
            batches: At least one; of any sizes.
            learning_rate: Of this step.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._engine.train()
        outputs: list[LossOutput] = []
        logprobs: dict[int, list[float]] = {}
        for i, batch in enumerate(batches):
            batch = batch.to(self.device)
            scored = self._engine(batch)
            output = self._loss(scored, batch)
            self._engine.set_gradient_accumulation_boundary(i == len(batches) - 1)
            self._engine.backward(output.loss * self._world_size)
            self._engine.step()
            outputs.append(output)
            rows = zip(batch.order, scored.logprobs.detach(), batch.loss_mask, strict=True)
            logprobs |= {order: row[mask.bool()].tolist() for order, row, mask in rows}
        stats = Stats.total(output.stats for output in outputs)
        one = torch.ones((), dtype=torch.float64)
        # A sum over ranks is wanted, and a mean is what becomes of (sum, count): count it once.
        loss = torch.stack([output.loss.detach().double() for output in outputs]).sum()
        stats.sums["loss"] = (loss * self._world_size, one)
        return StepOutput(
            stats=stats,
            grad_norm=float(self._engine.get_global_grad_norm() or 0.0),
            policy_logprobs=[logprobs[order] for order in sorted(logprobs)],
        )

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor of the policy by its checkpoint name, on the CPU, in the sampling dtype."""
        dtype = getattr(torch, self._settings.model.dtype)
        seen: set[int] = set()
        for name, tensor in self._model.state_dict().items():
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
        self._model.save_pretrained(folder)
        self.processor.save_pretrained(folder)

    def close(self) -> None:
        """Leave the process group."""
        self._engine.destroy()
        torch.distributed.destroy_process_group()

    def _loss(self, scored: Scored, batch: MicroBatch) -> LossOutput:
        return policy_loss(
            self._settings.algorithm,
            scored.logprobs,
            batch.rollout_logprobs,
            batch.advantages,
            batch.loss_mask,
            batch.token_weights,
            entropies=scored.entropies,
        )
