"""GRPO, from start to end: the loop that the whole system exists for."""

from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial

from scene_data.dataset import open_dataset
from services.settings import Settings
from services.settings.checks import log_advice
from services.telemetry import Tracing
from trainer.algorithms.weighting import completion_weights
from trainer.batches.preparation import Preparation, Prepared, PreparedBatches
from trainer.checkpoints.checkpoint import CheckpointStore, DataOrder
from trainer.checkpoints.inputs import grpo_inputs
from trainer.checkpoints.resume import restore
from trainer.collection.image_check import ImageCheck
from trainer.connection import ServiceConnection
from trainer.policy.engine import PolicyEngine, init_process_group
from trainer.ranks.group import Ranks, launched_as
from trainer.ranks.stop import StopAskedError, StopRequest
from trainer.ranks.watch import RankWatch, watched
from trainer.records.evaluation import StepEvaluation
from trainer.records.files import RunRecords, ledger_line, metrics_line
from trainer.records.phases import PhaseClock
from trainer.records.tracing import SERVICE
from trainer.schedule import learning_rate
from trainer.step import StepTraining
from trainer.types import StepBatch
from trainer.write_guard import WriteGuard


def train(
    settings: Settings,
    *,
    resume: bool,
    allow_changes: bool = False,
    evaluation: StepEvaluation | None = None,
    stop: StopRequest | None = None,
) -> bool:
    """Run GRPO until `trainer.num_steps`; every rank calls this.

    Step s trains policy version s and publishes version s + 1. A step is committed by the next
    checkpoint: after a crash the run goes back to it, and what was done since is done again. A step
    in which a number is not finite is tried again with other groups (`step`).

    Args:
        settings: Of the run. Redis, the reward service and a rollout server must be running, or
            come up in `trainer.wait_timeout_s`.
        resume: Continue from the run's last checkpoint, if there is one.
        allow_changes: Also with another dataset, instruction, temperature or rubric.
        evaluation: Of rank 0; closed at the end.
        stop: Of this process; rank 0's counts.

    Returns:
        Whether the run is done. Else it was asked to stop, and its steps are in a checkpoint.

    Raises:
        SggError: With what to do about it.
    """
    evaluation = evaluation or StepEvaluation()
    rank, size = launched_as()
    if rank == 0:
        log_advice(settings)
    limit_s = settings.trainer.wait_timeout_s
    guard, ranks_folder = WriteGuard(settings.run.folder), settings.run.files.ranks
    with watched(ranks_folder, rank=rank, size=size, limit_s=limit_s, guard=guard) as watch:
        # The watch names a hung rank after twice the limit; a collective by itself only ends.
        init_process_group(3 * limit_s)
        ranks = Ranks(3 * limit_s)
        with closing(evaluation):
            stop = stop or StopRequest()
            how = {"resume": resume, "allow_changes": allow_changes}
            return _run(settings, ranks, watch, guard, evaluation, stop, **how)


def _run(
    settings: Settings,
    ranks: Ranks,
    watch: RankWatch,
    guard: WriteGuard,
    evaluation: StepEvaluation,
    stop: StopRequest,
    *,
    resume: bool,
    allow_changes: bool,
) -> bool:
    """The story."""
    trainer, files = settings.trainer, settings.run.files
    watch.enter("load", 0)
    dataset = open_dataset(settings.data.train, task=settings.data.task)
    total = trainer.total_steps(len(dataset))
    engine = PolicyEngine(settings, ranks.size)
    records = RunRecords(settings, ranks.rank, guard)
    tracing = Tracing(SERVICE, settings.telemetry.otlp_endpoint if ranks.is_main else None)
    checkpoints = CheckpointStore(
        files.checkpoints, trainer.keep_checkpoints, guard, trainer.wait_timeout_s
    )
    order = DataOrder(seed=settings.run.seed, num_rows=len(dataset), group_size=trainer.group_size)
    inputs = grpo_inputs(settings, dataset) if ranks.is_main else {}
    state = restore(
        *(checkpoints, guard, engine, ranks, order, inputs),
        resume=resume,
        allow_changes=allow_changes,
    )
    check = ImageCheck(engine.processor, engine.image_token_id)
    preparation = Preparation(
        dataset,
        engine.processor,
        engine.rope_index,
        image_token_id=engine.image_token_id,
        max_tokens=trainer.tokens_per_micro_batch,
        rank=ranks.rank,
        num_ranks=ranks.size,
    )

    with ServiceConnection.open(
        settings, dataset, engine.suppressed_token_ids, state, ranks, check, stop
    ) as services:
        guard.join(services.incarnation)
        if ranks.is_main:
            guard.take(services.incarnation)
        records.cut_to(state.step)
        services.start(engine.weights(), state.step)
        batches = PreparedBatches(
            services.take,
            partial(prepare, preparation=preparation, settings=settings),
            ahead=trainer.max_policy_lag > 0,
            num_steps=total,
        )

        def commit(step: int) -> int:
            with clock("publish"):  # it waits for the version that is under way
                of_run = {"data_order": order, "inputs": inputs}
                now = services.state(step).model_copy(update=of_run)
            with clock("checkpoint"):
                records.sync()
                checkpoints.write(now, engine.save_state, ranks)
            services.committed(step)
            records.committed(step)
            return step

        @contextmanager
        def kept() -> Iterator[None]:
            """After this block all steps are in a checkpoint."""
            yield
            batches.close()
            if num_done > committed:
                commit(num_done)
            stop.all_kept(is_done=is_done)

        is_done, num_done, committed = False, state.step, state.step
        training = StepTraining(services, batches, engine, records, ranks)
        clock = PhaseClock(watch, state.step, tracing)
        if state.step == 0:
            records.evaluations(evaluation.start(), 0)
        with stop.noted(), kept(), suppress(StopAskedError):
            for step in range(state.step, total):
                services.look_for_stop()
                evaluation.begin(step)
                rate = learning_rate(trainer, step, total)
                batch, learned = training.train(step, rate, clock)
                with clock("publish"):
                    services.publish(engine.weights(), step + 1, batch)
                if ranks.is_main:
                    row = metrics_line(batch, learned, step, total, clock) | evaluation.counts()
                    records.step(row, ledger_line(batch, step))
                    records.evaluations(evaluation.results(), step)
                # A checkpoint's seconds count in the line of the step after it.
                clock.finish()
                num_done = step + 1
                clock = PhaseClock(watch, num_done, tracing)
                if num_done % trainer.checkpoint_every == 0 or num_done == total:
                    committed = commit(num_done)
            services.look_for_stop()
            is_done = True
        if is_done:
            guard.check()
            engine.save_pretrained(files.checkpoint)
            records.evaluations(evaluation.finish(total), total)
    clock.finish()
    ranks.barrier()
    records.close()
    tracing.close()
    engine.close()
    return is_done


def prepare(batch: StepBatch, *, preparation: Preparation, settings: Settings) -> Prepared:
    """A batch with its tokens weighted, as tensors of this rank's groups."""
    completions = [c for group in batch.groups for c in group.rollout.completions]
    weights = completion_weights(
        settings.algorithm,
        [len(c.token_ids) for c in completions],
        [c.finish_reason == "length" for c in completions],
        max_tokens=settings.sampling.max_tokens,
    )
    size = settings.trainer.group_size
    return preparation(batch, [weights[i : i + size] for i in range(0, len(weights), size)])
