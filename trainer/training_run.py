"""One start of a GRPO run, as every rank has it: its parts, and what is done around its steps."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from services.run_folder.events import EventKind
from services.schemas.groups import TrainGroup
from services.settings import Settings
from trainer.algorithms.schedule import learning_rate
from trainer.batches.preparation import PreparedBatches
from trainer.checkpoints.checkpoint import CheckpointStore
from trainer.connection import ServiceConnection
from trainer.not_finite import explain_skipped, explain_skipped_updates
from trainer.policy.engine import PolicyEngine
from trainer.policy.updates import StepOutput
from trainer.ranks.group import Ranks
from trainer.ranks.stop import StopAskedError, StopRequest
from trainer.ranks.write_guard import WriteGuard
from trainer.records.evaluation import StepEvaluation
from trainer.records.files import RunRecords, ledger_line, metrics_line
from trainer.records.phases import PhaseClock
from trainer.types import StepBatch


@dataclass(kw_only=True)
class TrainingRun:
    """The parts of one start, and how far it is."""

    settings: Settings
    ranks: Ranks
    engine: PolicyEngine
    connection: ServiceConnection
    batches: PreparedBatches
    records: RunRecords
    checkpoints: CheckpointStore
    guard: WriteGuard
    phase: PhaseClock
    evaluation: StepEvaluation
    stop: StopRequest
    num_steps: int
    num_done: int
    """Steps that are done; those up to `num_committed` are in a checkpoint."""
    num_committed: int
    is_done: bool = False
    skipped: list[StepBatch] = field(default_factory=list)
    """Batches of the present step that gave no finite numbers."""

    def steps(self) -> Iterator[int]:
        """The steps to do: each one again, until `record` says that it is done.

        Raises:
            StopAskedError: The run is to stop.
        """
        for step in range(self.num_done, self.num_steps):
            self.connection.look_for_stop()
            self.evaluation.begin(step)
            while self.num_done == step:
                yield step
        self.connection.look_for_stop()
        self.is_done = True

    @contextmanager
    def stoppable(self) -> Iterator[None]:
        """A block that ends early where the run is to stop; then all steps are in a checkpoint."""
        with self.stop.noted():
            with suppress(StopAskedError):
                yield
            self.batches.close()
            if self.num_done > self.num_committed:
                self._commit()
            self.stop.all_kept(is_done=self.is_done)

    def learning_rate(self, step: int) -> float:
        """A function of the settings alone, so that a resume has nothing to restore."""
        return learning_rate(self.settings.trainer, step, self.num_steps)

    def skip(
        self, step: int, batch: StepBatch, groups: Sequence[TrainGroup], output: StepOutput
    ) -> None:
        """A number was not finite and no weight has changed: the step wants other groups.

        Raises:
            NotFiniteError: It was one time too many.
            StopAskedError: The run is to stop.
        """
        self.skipped.append(batch)
        self.records.events.note("skipped", f"a number of step {step} was not finite")
        explain_skipped(step, self.skipped, groups, output, self.ranks)
        self.connection.skip(batch)
        self.connection.look_for_stop()

    def without_skipped(
        self, step: int, batch: StepBatch, groups: Sequence[TrainGroup], output: StepOutput
    ) -> StepBatch:
        """The batch of a step some of whose updates were skipped.

        The others have changed weights, so the step counts and its version is published. The ledger
        tells the groups that no update has learnt from as skipped.
        """
        names, said = explain_skipped_updates(step, groups, output, self.ranks)
        self.records.events.note("skipped", said)
        return batch.with_skipped(names)

    def record(self, step: int, batch: StepBatch, learned: dict[str, float]) -> None:
        """The step is done: write its lines. The time of a checkpoint counts in the next step."""
        with self.phase("record"):
            self.records.rollouts.finish(step, batch.unused)
        if self.ranks.is_main:
            learned |= {"learning_rate": self.learning_rate(step), "num_skipped": len(self.skipped)}
            row = metrics_line(batch, learned, step, self.num_steps, self.phase)
            row |= self.connection.version_metrics() | self.evaluation.counts()
            self.records.step(row, ledger_line(batch, step), batch.groups)
            self.records.evaluations(self.evaluation.results(), step)
        self.num_done = self.records.events.step = step + 1
        self.skipped.clear()
        self.phase.begin(self.num_done)

    def commit_if_due(self) -> None:
        """Write a checkpoint every `trainer.checkpoint_every` steps, and after the last."""
        every = self.settings.trainer.checkpoint_every
        if self.num_done % every == 0 or self.num_done == self.num_steps:
            self._commit()

    def finish(self) -> None:
        """Save the model, and evaluate it, if all steps are done."""
        if self.is_done:
            self.guard.check()
            self.engine.save_pretrained(self.settings.run.files.checkpoint)
            self.records.evaluations(self.evaluation.finish(self.num_steps), self.num_steps)
        kind: EventKind = "finished" if self.is_done else "stopped"
        self.records.events.note(kind, f"{self.num_done} steps are done", self.num_done - 1)

    def _commit(self) -> None:
        with self.phase("publish"):  # it waits for the version that is under way
            state = self.connection.state(self.num_done)
        with self.phase("checkpoint"):
            self.records.sync()
            self.checkpoints.write(state, self.engine.save_state, self.ranks)
        self.connection.committed(self.num_done)
        said = f"all steps up to {self.num_done} are in a checkpoint"
        self.records.events.note("checkpoint", said, self.num_done - 1)
        self.records.committed(self.num_done)
        self.num_committed = self.num_done
