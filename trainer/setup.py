"""What a GRPO run needs before its first step: ranks, model, checkpoint, services."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial

from scene_data.dataset import SceneDataset
from services.schemas.groups import TrainGroup
from services.settings import Settings
from services.settings.checks import log_advice
from services.telemetry import Tracing
from trainer.algorithms.weighting import completion_weights
from trainer.batches.images import ImageCheck
from trainer.batches.preparation import Preparation, Prepared, PreparedBatches
from trainer.batches.shares import RankBatch, pack, share_out, unpack
from trainer.checkpoints.checkpoint import CheckpointStore, DataOrder, TrainerState
from trainer.checkpoints.inputs import grpo_inputs
from trainer.checkpoints.resume import restore
from trainer.collection.prompts import PromptSource
from trainer.connection import ServiceConnection, take_incarnation
from trainer.policy.engine import PolicyEngine, init_process_group
from trainer.ranks.group import Ranks, launched_as
from trainer.ranks.stop import StopRequest
from trainer.ranks.training_rows import open_training_rows
from trainer.ranks.watch import RankWatch, watched
from trainer.ranks.write_guard import WriteGuard
from trainer.records.evaluation import StepEvaluation
from trainer.records.files import RunRecords
from trainer.records.phases import PhaseClock
from trainer.records.tracing import SERVICE
from trainer.training_run import TrainingRun
from trainer.types import StepBatch


@contextmanager
def opened_run(
    settings: Settings,
    evaluation: StepEvaluation,
    stop: StopRequest,
    *,
    resume: bool,
    allow_changes: bool,
) -> Iterator[TrainingRun]:
    """Join the ranks, load model and checkpoint, connect to the services; arguments as `train`."""
    files, guard = settings.run.files, WriteGuard(settings.run.folder)
    with _joined(settings, guard) as (ranks, watch), closing(evaluation):
        watch.enter("load", 0)
        dataset = open_training_rows(ranks, settings.data)
        engine = PolicyEngine(settings, ranks.size)
        records = RunRecords(settings, ranks.rank, guard)
        tracing = Tracing(SERVICE, settings.telemetry.otlp_endpoint if ranks.is_main else None)
        trainer = settings.trainer
        checkpoints = CheckpointStore(
            files.checkpoints, trainer.keep_checkpoints, guard, trainer.wait_timeout_s
        )
        check = ImageCheck(engine.processor)
        prompts = PromptSource(settings, dataset, engine.suppressed_token_ids, check)
        events = records.events
        with events.failures(), guard.explaining(), ExitStack() as stack:
            now = _step_0(settings, dataset, ranks, guard)
            take = partial(_take, settings, ranks, guard)
            how = {"resume": resume, "allow_changes": allow_changes}
            state = restore(checkpoints, engine.load_state, ranks, now, take, **how)
            connection = ServiceConnection(settings, prompts, state, ranks, stop, events)
            stack.enter_context(connection)
            records.cut_to(state.step)
            events.note("started", f"start {state.incarnation} of the trainer")
            connection.start(engine.weights(connection.file.writers), state.step)
            run = TrainingRun(
                settings=settings,
                ranks=ranks,
                engine=engine,
                connection=connection,
                batches=_batches(settings, dataset, engine, ranks, connection),
                records=records,
                checkpoints=checkpoints,
                guard=guard,
                phase=PhaseClock(watch, state.step, tracing),
                evaluation=evaluation,
                stop=stop,
                num_steps=trainer.total_steps(len(dataset)),
                num_done=state.step,
                num_committed=state.step,
            )
            if state.step == 0:
                records.evaluations(evaluation.start(), 0)
            yield run
        run.phase.finish()
        ranks.barrier()
        records.close()
        tracing.close()
        engine.close()


@contextmanager
def _joined(settings: Settings, guard: WriteGuard) -> Iterator[tuple[Ranks, RankWatch]]:
    """Join the process group, and watch for ranks that hang."""
    rank, size = launched_as()
    if rank == 0:
        log_advice(settings)
    limit_s, folder = settings.trainer.wait_timeout_s, settings.run.files.ranks
    watch = RankWatch(folder, rank=rank, size=size, limit_s=limit_s, guard=guard)
    with watched(watch):
        # The watch names a hung rank after twice the limit; a collective by itself only ends.
        init_process_group(3 * limit_s)
        yield Ranks(3 * limit_s), watch


def _step_0(
    settings: Settings, dataset: SceneDataset, ranks: Ranks, guard: WriteGuard
) -> TrainerState:
    """What a checkpoint would say before the first step."""
    order = DataOrder(
        seed=settings.run.seed,
        num_rows=len(dataset),
        group_size=settings.trainer.group_size,
    )
    return TrainerState(
        incarnation=guard.latest(),
        num_ranks=ranks.size,
        data_order=order,
        inputs=grpo_inputs(settings, dataset) if ranks.is_main else {},
    )


def _take(settings: Settings, ranks: Ranks, guard: WriteGuard, after: int) -> int:
    """Shut earlier starts out of Redis, and then of the run's folder."""
    incarnation = take_incarnation(settings, ranks, after)
    if not ranks.from_main(lambda: guard.take(incarnation), bool):
        return _take(settings, ranks, guard, incarnation)
    guard.join(incarnation)
    return incarnation


def _batches(
    settings: Settings,
    dataset: SceneDataset,
    engine: PolicyEngine,
    ranks: Ranks,
    connection: ServiceConnection,
) -> PreparedBatches:
    """Batches as this rank trains on them."""
    preparation = Preparation(dataset, engine.processor, engine.rope_index, engine.mask_replay())
    # In the thread of `take`, beside the training loop's collectives.
    beside = ranks.beside()

    def prepare(batch: StepBatch) -> Prepared:
        parts = partial(_parts, settings, batch.groups)
        return preparation(beside.scatter(parts, pack, unpack))

    trainer = settings.trainer
    return PreparedBatches(
        connection.take,
        prepare,
        ahead=trainer.max_policy_lag > 0,
        num_steps=trainer.total_steps(len(dataset)),
    )


def _parts(settings: Settings, groups: Sequence[TrainGroup]) -> list[RankBatch]:
    """What each rank trains of a step."""
    completions = [c for group in groups for c in group.rollout.completions]
    weights = completion_weights(
        settings.algorithm,
        [len(c.token_ids) for c in completions],
        [c.finish_reason == "length" for c in completions],
        max_tokens=settings.sampling.max_tokens,
    )
    size = settings.trainer.group_size
    return share_out(
        groups,
        [weights[i : i + size] for i in range(0, len(weights), size)],
        num_ranks=settings.trainer.num_ranks,
        max_tokens=settings.trainer.tokens_per_micro_batch,
        num_mini_batches=settings.algorithm.num_mini_batches,
    )
