"""GRPO, from start to end: the loop that the whole system exists for."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from scene_data.dataset import open_dataset
from services.errors import SettingsError
from services.settings import Settings
from trainer.algorithms.weighting import completion_weights
from trainer.checkpoint import CheckpointStore, TrainerState
from trainer.checks import check_grpo
from trainer.engine import PolicyEngine, init_process_group
from trainer.link import ServiceLink
from trainer.preparation import Preparation, Prepared, PreparedBatches
from trainer.ranks import Ranks
from trainer.records import RunRecords, ledger_line, step_metrics
from trainer.schedule import learning_rate
from trainer.types import Batch

logger = logging.getLogger(__name__)


def train(settings: Settings, *, resume: bool) -> None:
    """Run GRPO until `trainer.num_steps`; every rank calls this.

    Step s trains policy version s and publishes version s + 1. A step is committed by the next
    checkpoint: after a crash the run goes back to it, and what was done since is done again.

    Args:
        settings: Of the run. Redis, the reward service and a rollout server must be running, or
            come up in `trainer.wait_timeout_s`.
        resume: Continue from the run's last checkpoint, if there is one.

    Raises:
        SggError: With what to do about it.
    """
    trainer = settings.trainer
    check_grpo(settings)
    init_process_group(trainer.wait_timeout_s)
    ranks = Ranks(2 * trainer.wait_timeout_s)
    dataset = open_dataset(settings.data.train)
    total = trainer.total_steps(len(dataset))
    engine = PolicyEngine(settings, ranks.size)
    records = RunRecords(settings.run.folder)
    checkpoints = CheckpointStore(settings.run.folder / "checkpoints", trainer.keep_checkpoints)
    state = restore(checkpoints, engine, records, ranks, resume=resume)
    preparation = Preparation(
        dataset,
        engine.processor,
        engine.rope_index,
        image_token_id=engine.image_token_id,
        max_tokens=trainer.tokens_per_micro_batch,
        rank=ranks.rank,
        num_ranks=ranks.size,
    )

    with ServiceLink.open(settings, dataset, engine.suppressed_token_ids, state, ranks) as services:
        services.start(engine.weights(), state.step)
        batches = PreparedBatches(
            services.take,
            partial(prepare, preparation=preparation, settings=settings),
            ahead=trainer.max_policy_lag > 0,
            num_steps=total,
        )
        clock = PhaseClock()
        for step in range(state.step, total):
            with clock("wait"):
                batch = batches.take(step)
            with clock("prepare"):
                prepared = batches.prepared()
            rate = learning_rate(trainer, step, total)
            with clock("train"):
                output = engine.train_step(prepared.micro_batches, rate)
            learned = (
                ranks.combine(output.stats)
                | prepared.metrics
                | {
                    "grad_norm": output.grad_norm,
                    "learning_rate": rate,
                }
            )
            with clock("publish"):
                services.publish(engine.weights(), step + 1, batch)
            records.rollouts(step, ranks.rank, prepared.groups, output.policy_logprobs)
            if ranks.is_main:
                records.step(metrics_line(batch, learned, step, clock), ledger_line(batch, step))
            clock = PhaseClock()  # a checkpoint's seconds count in the line of the step after it
            if (step + 1) % trainer.checkpoint_every == 0 or step + 1 == total:
                with clock("checkpoint"):
                    checkpoints.write(services.state(step + 1), engine.save_state, ranks)
                services.committed(step + 1)
    engine.save_pretrained(settings.run.folder / "checkpoint")
    ranks.barrier()
    engine.close()


def restore(
    checkpoints: CheckpointStore,
    engine: PolicyEngine,
    records: RunRecords,
    ranks: Ranks,
    *,
    resume: bool,
) -> TrainerState:
    """Where to start: the last checkpoint, loaded, or step 0. Cuts the records to it."""
    found = checkpoints.latest() if resume else None
    if found is None:
        state = TrainerState(num_ranks=ranks.size)
    else:
        folder, state = found
        if state.num_ranks != ranks.size:
            raise SettingsError(
                f"{folder} is of {state.num_ranks} ranks: resume with "
                f"trainer.num_ranks={state.num_ranks}"
            )
        engine.load_state(folder)
        logger.info("resumed from %s", folder)
    if ranks.is_main:
        records.cut_to(state.step)
    ranks.barrier()
    return state


def prepare(batch: Batch, *, preparation: Preparation, settings: Settings) -> Prepared:
    """A batch with its tokens weighted, as tensors of this rank's groups."""
    lengths = [len(c.token_ids) for g in batch.groups for c in g.rollout.completions]
    weights = completion_weights(
        settings.algorithm.loss, lengths, max_tokens=settings.sampling.max_tokens
    )
    size = settings.trainer.group_size
    return preparation(batch, [weights[i : i + size] for i in range(0, len(weights), size)])


def metrics_line(
    batch: Batch, learned: dict[str, float], step: int, clock: "PhaseClock"
) -> dict[str, Any]:
    """A step's line of `metrics.jsonl`."""
    metrics = step_metrics(batch, policy_version=step)
    seconds = sum(clock.seconds.values())
    return {
        "step": step,
        "policy_version": step,
        "time": time.time(),
        **metrics,
        **learned,
        "tokens_per_s": metrics["num_tokens"] / seconds,
        "phases_s": clock.seconds,
    }


class PhaseClock:
    """Seconds of each phase of a step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Time a block."""
        start = time.perf_counter()
        yield
        self.seconds[phase] = time.perf_counter() - start
