"""The files a run leaves for people: metrics, ledger, and the rollouts themselves."""

import json
import os
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any, get_args

from pydantic_core import to_json

from services.host.sync import sync
from services.run_folder import LedgerRow
from services.schemas.rewards import Status
from services.settings import Settings
from services.waiting import RoomWait
from trainer.ranks.write_guard import WriteGuard
from trainer.records.phases import PhaseClock
from trainer.records.rollout_files import RolloutFiles
from trainer.records.trackers import Trackers
from trainer.types import StepBatch


class StepLines:
    """A file with one JSON line a step, cut back when a run resumes from an earlier one."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a step's line, whole or not at all."""
        size = self._file.stat().st_size if self._file.exists() else 0
        try:
            with self._file.open("ab") as stream:
                # NaN and Infinity are not JSON.
                stream.write(to_json(row, inf_nan_mode="null") + b"\n")
        except OSError:
            os.truncate(self._file, size)
            raise

    def sync(self) -> None:
        """Have all lines on disk."""
        if self._file.exists():
            sync(self._file)

    def cut_to(self, step: int) -> None:
        """Keep the lines of steps under `step`; later ones move to `rolled_back.jsonl`."""
        lines = self._file.read_text().split("\n") if self._file.exists() else []
        kept = [line for line in lines if line and _step_of(line) < step]
        dropped = [line for line in lines if line and _step_of(line) >= step]
        self._file.parent.mkdir(parents=True, exist_ok=True)
        if dropped:
            with self._file.with_name("rolled_back.jsonl").open("a") as stream:
                stream.writelines(f"{line}\n" for line in dropped)
        draft = self._file.with_suffix(".draft")
        draft.write_text("".join(f"{line}\n" for line in kept))
        sync(draft)
        draft.rename(self._file)
        sync(self._file.parent)


class RunRecords:
    """What a run leaves, cut back to a checkpoint's step when it resumes.

    `metrics.jsonl` has one line a step, `ledger.jsonl` one line a step with the groups it used,
    `evaluations.jsonl` one line a version that was evaluated, and `rollouts/` the groups
    themselves. Steps after the last checkpoint are not committed: on resume
    what they left moves aside.

    Args:
        settings: The run's.
        rank: Rank 0 writes metrics and ledger, every rank its own groups.
        guard: Every method that writes raises `SupersededError` once a later trainer has started.
    """

    def __init__(self, settings: Settings, rank: int, guard: WriteGuard | None = None) -> None:
        files = settings.run.files
        self._check = (guard or WriteGuard(files.path)).check
        self._room = RoomWait(files.path, settings.trainer.wait_timeout_s)
        tables = [StepLines(file) for file in (files.ledger, files.metrics, files.evaluations)]
        self._ledger, self._metrics, self._evaluations = tables
        self._tables = tables if rank == 0 else []
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
        for table in self._tables:
            table.cut_to(step)
        self._trackers.start(step)

    def step(self, metrics: Mapping[str, Any], ledger: Mapping[str, Any]) -> None:
        """Append one step; rank 0 only."""
        self._check()
        self._room.write(lambda: self._ledger.append(ledger))
        self._room.write(lambda: self._metrics.append(metrics))
        self._trackers.log(metrics)

    def evaluations(self, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        """Append what has come while `step` trained; rank 0 only has any."""
        for row in rows:
            self._check()
            self._room.write(partial(self._evaluations.append, row))
            self._trackers.log_evaluation(row, step)

    def sync(self) -> None:
        """Have all lines on disk, before a checkpoint counts on them."""
        for table in self._tables:
            table.sync()

    def committed(self, step: int) -> None:
        """A checkpoint after `step` steps is complete: older groups may go."""
        self._check()
        self.rollouts.committed(step)

    def close(self) -> None:
        """Finish the trackers."""
        self._trackers.close()


def step_metrics(batch: StepBatch, policy_version: int) -> dict[str, Any]:
    """What a step's groups say by themselves; see `docs/metrics.md` for each key."""
    rewards = [r for group in batch.groups for r in group.rewards]
    completions = [c for group in batch.groups for c in group.rollout.completions]
    lags = [policy_version - c.oldest_policy_version for c in completions]
    totals = [r.total for r in rewards]
    return {
        "reward_mean": fmean(totals),
        "reward_std": pstdev(totals),
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
        "policy_lag_mean": fmean(lags),
        "policy_lag_max": max(lags),
        "num_groups": len(batch.groups),
        "num_stale": len(batch.outcome.stale),
        "num_dead": len(batch.outcome.dead),
        "num_replaced": len(batch.outcome.replaced),
        "groups_without_spread": sum(not any(group.advantages) for group in batch.groups),
        "completion_length_mean": fmean(len(c.token_ids) for c in completions),
        "completion_length_max": max(len(c.token_ids) for c in completions),
        "truncated_rate": fmean(c.finish_reason == "length" for c in completions),
        "num_completions": len(completions),
        "num_tokens": sum(len(c.token_ids) for c in completions),
    }


def metrics_line(
    batch: StepBatch, learned: dict[str, float], step: int, total: int, clock: PhaseClock
) -> dict[str, Any]:
    """A step's line of `metrics.jsonl`."""
    metrics = step_metrics(batch, policy_version=step)
    return {
        "step": step,
        "num_steps": total,
        "policy_version": step,
        "time": time.time(),
        **metrics,
        **learned,
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
    return {
        "step": step,
        "policy_version": step,
        "group_ids": [g.rollout.group_id for g in batch.groups],
        "stale": batch.outcome.stale,
        "dead": batch.outcome.dead,
        "skipped": batch.outcome.skipped,
        "no_spread": batch.outcome.replaced,
    }


def _step_of(line: str) -> int:
    """The step of a line; a line torn by a crash belongs to no kept step."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return 1 << 60
