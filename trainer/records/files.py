"""The files a run leaves for people: metrics, ledger, and the rollouts themselves."""

import time
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain
from statistics import fmean
from typing import Any, get_args

from services.run_folder import LedgerRow
from services.schemas.groups import TrainGroup
from services.schemas.rewards import Status
from services.settings import Settings
from services.waiting import RoomWait
from trainer.ranks.write_guard import WriteGuard
from trainer.records.events import EventLog
from trainer.records.index_lines import spread
from trainer.records.phases import PhaseClock
from trainer.records.rollout_files import RolloutFiles
from trainer.records.step_lines import StepLines
from trainer.records.trackers import Trackers
from trainer.types import StepBatch


class RunRecords:
    """What a run leaves, cut back to a checkpoint's step when it resumes.

    `metrics.jsonl` has one line a step, `ledger.jsonl` one line a step with the groups it used,
    `evaluations.jsonl` one line a version that was evaluated, `events.jsonl` one line for what
    happened, and `rollouts/` the groups themselves with their index. Steps after the last
    checkpoint are not committed: on resume what they left moves aside.

    Args:
        settings: The run's.
        rank: Rank 0 writes metrics and ledger, every rank its own groups.
        guard: Every method that writes raises `SupersededError` once a later trainer has started.
    """

    def __init__(self, settings: Settings, rank: int, guard: WriteGuard | None = None) -> None:
        files = settings.run.files
        self._check = (guard or WriteGuard(files.path)).check
        self._room = RoomWait(files.path, settings.trainer.wait_timeout_s, self._check)
        paths = (files.ledger, files.metrics, files.evaluations, files.events)
        tables = [StepLines(file) for file in paths]
        self._ledger, self._metrics, self._evaluations, events = tables
        self._tables = tables if rank == 0 else []
        self.events = EventLog(events if rank == 0 else None, self._check)
        """What happens around the steps; rank 0 writes it."""
        self.rollouts = RolloutFiles(
            files.rollouts,
            rank=rank,
            keep=settings.records.keep_rollouts,
            check=self._check,
            timeout_s=settings.trainer.wait_timeout_s,
        )
        """This rank's groups of each step, with everything that its loss is made of."""
        self._trackers = Trackers(settings, rank)

    def cut_to(self, step: int) -> None:
        """Keep what is of steps under `step`, and go on from there; once, before the first."""
        self._check()
        self.rollouts.cut_to(step)
        moved = {table: table.cut_to(step) for table in self._tables}
        self.events.step = step
        if moved.get(self._ledger):
            self.events.note("rolled_back", f"step {step} and those after it are done again")
        self._trackers.start(step)

    def step(
        self,
        metrics: Mapping[str, Any],
        ledger: Mapping[str, Any],
        groups: Sequence[TrainGroup] = (),
    ) -> None:
        """Append one step, with groups that trackers may show; rank 0 only."""
        self._room.write(lambda: self._ledger.append(ledger))
        self._room.write(lambda: self._metrics.append(metrics))
        self._trackers.log(metrics)
        self._trackers.log_answers(int(metrics["step"]), groups)

    def evaluations(self, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        """Append what has come while `step` trained; rank 0 only has any."""
        for row in rows:
            self._room.write(partial(self._evaluations.append, row))
            self.events.note("evaluated", f"version {row['step']} is evaluated", row["step"])
            self._trackers.log_evaluation(row, step)

    def sync(self) -> None:
        """Have all of it on disk, before a checkpoint counts on it."""
        for table in self._tables:
            table.sync()
        self.rollouts.sync()

    def committed(self, step: int) -> None:
        """A checkpoint after `step` steps is complete: older groups may go."""
        self._check()
        self.rollouts.committed(step)

    def close(self) -> None:
        """Finish what is written beside the steps, and the trackers."""
        self.rollouts.close()
        self._trackers.close()


def step_metrics(batch: StepBatch, policy_version: int) -> dict[str, Any]:
    """What a step's groups say by themselves; see `docs/metrics.md` for each key."""
    rewards = [r for group in batch.groups for r in group.rewards]
    completions = [c for group in batch.groups for c in group.rollout.completions]
    spans = [span for c in completions for span in c.policy_versions]
    lags = [policy_version - span.policy_version for span in spans]
    totals = [r.total for r in rewards]
    return {
        "reward_mean": fmean(totals),
        "reward_std": spread(totals),
        "reward_min": min(totals),
        "reward_max": max(totals),
        "reward_terms": {
            term: fmean(r.breakdown[term] for r in rewards) for term in rewards[0].breakdown
        },
        "failure_rate": fmean(r.status != "ok" for r in rewards),
        "failures": {
            status: fmean(r.status == status for r in rewards)
            for status in get_args(Status)
            if status != "ok"
        },
        "policy_lag_mean": fmean(lags, [span.end - span.start for span in spans]),
        "policy_lag_max": max(lags),
        "num_groups": len(batch.groups),
        "num_stale": len(batch.outcome.stale),
        "num_dead": len(batch.outcome.dead),
        "num_replaced": len(batch.outcome.replaced),
        "groups_without_spread": sum(map(_teaches_nothing, batch.groups)),
        "completion_length_mean": fmean(len(c.token_ids) for c in completions),
        "completion_length_max": max(len(c.token_ids) for c in completions),
        "truncated_rate": fmean(c.finish_reason == "length" for c in completions),
        "num_completions": len(completions),
        "num_tokens": sum(len(c.token_ids) for c in completions),
    }


def _teaches_nothing(group: TrainGroup) -> bool:
    """Whether all advantages are 0: those of answers, and of their elements where they have any."""
    return not any(chain(group.advantages, *group.element_advantages))


def metrics_line(
    batch: StepBatch, learned: dict[str, float], step: int, total: int, clock: PhaseClock
) -> dict[str, Any]:
    """A step's line of `metrics.jsonl`; a learned name such as `a/b` becomes `b` below `a`."""
    metrics = step_metrics(batch, policy_version=step)
    for name, value in learned.items():
        above, _, part = name.partition("/")
        if part:
            metrics.setdefault(above, {})[part] = value
        else:
            metrics[name] = value
    return {
        "step": step,
        "num_steps": total,
        "policy_version": step,
        "time": time.time(),
        **metrics,
        "tokens_per_s": metrics["num_tokens"] / clock.total_s,
        "completions_per_s": metrics["num_completions"] / clock.total_s,
        "trainer_idle_fraction": clock.seconds["wait"] / clock.total_s,
        "sampler_idle_fraction": batch.sampler_idle_fraction,
        "groups_sampling": batch.num_sampling,
        "groups_scoring": batch.num_scoring,
        "groups_ready": batch.num_ready,
        "num_servers": batch.num_servers,
        "phases_s": clock.seconds,
    }


def ledger_line(batch: StepBatch, step: int) -> LedgerRow:
    """The line that says what a step used. It trained version `step`, and published the next."""
    skipped, ids = {*batch.outcome.skipped}, [g.rollout.group_id for g in batch.groups]
    return {
        "step": step,
        "policy_version": step,
        "group_ids": [name for name in ids if name not in skipped],
        "stale": batch.outcome.stale,
        "dead": batch.outcome.dead,
        "skipped": batch.outcome.skipped,
        "no_spread": batch.outcome.replaced,
    }
