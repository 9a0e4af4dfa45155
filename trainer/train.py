"""GRPO, from start to end."""

from services.settings import Settings
from trainer.ranks.stop import StopRequest
from trainer.records.evaluation import StepEvaluation
from trainer.setup import opened_run
from trainer.training_run import TrainingRun


def train(
    settings: Settings,
    *,
    resume: bool,
    allow_changes: bool = False,
    evaluation: StepEvaluation | None = None,
    stop: StopRequest | None = None,
) -> bool:
    """Run GRPO until `trainer.num_steps`; every rank calls this.

    Args:
        settings: The run's. Redis, the reward service and a rollout server must be running, or
            come up in `trainer.wait_timeout_s`.
        resume: Continue from the run's last checkpoint, if there is one.
        allow_changes: Resume although dataset, instruction, temperature, rubric or algorithm are
            others than the checkpoint's.
        evaluation: Used on rank 0; closed at the end.
        stop: Only rank 0's decides.

    Returns:
        Whether the run is done. Else it was asked to stop, and its steps are in a checkpoint.

    Raises:
        SggError: With what to do about it.
    """
    evaluation, stop = evaluation or StepEvaluation(), stop or StopRequest()
    with opened_run(settings, evaluation, stop, resume=resume, allow_changes=allow_changes) as run:
        train_steps(run)
        run.finish()
    return run.is_done


def train_steps(run: TrainingRun) -> None:
    """Step s trains policy version s and publishes version s + 1.

    A step is committed by the next checkpoint: after a crash the run goes back to it, and what was
    done since is done again. An update in which a number is not finite is skipped; a step all of
    whose updates are is tried again with other groups.
    """
    with run.stoppable():
        for step in run.steps():
            with run.phase("wait"):
                batch = run.batches.take_with_advantages(step)
            with run.phase("prepare"):
                prepared = run.batches.prepared()
            run.guard.check()  # a Redis that was emptied knows of no later start
            with run.phase("train"):
                output = run.engine.train_step(prepared.mini_batches, run.learning_rate(step))
                learned = run.ranks.combine(output.stats) | prepared.metrics
            with run.phase("record"):
                run.records.rollouts.write(step, prepared.groups, output.policy_logprobs)
            if output.skipped:
                run.skip(step, batch, prepared.groups, output)
                continue
            batch = batch.after(run.skipped)
            if output.num_skipped_updates:
                batch = run.without_skipped(step, batch, prepared.groups, output)
            with run.phase("publish"):
                weights = run.engine.weights(run.connection.file.writers)
                run.connection.publish(weights, step + 1, batch)
            run.record(step, batch, learned | output.metrics)
            run.commit_if_due()
