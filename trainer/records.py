"""The files a run leaves for people: metrics, ledger, and the rollouts themselves."""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

from trainer.types import Batch, TrainGroup


class RunRecords:
    """Append-only files of a run folder, cut back to a checkpoint's step when a run resumes.

    `metrics.jsonl` has one line a step, `ledger.jsonl` one line a step with the groups it used.
    Steps after the last checkpoint are not committed: on resume their lines move to
    `rolled_back.jsonl`.
    """

    def __init__(self, folder: Path) -> None:
        self._metrics = folder / "metrics.jsonl"
        self._ledger = folder / "ledger.jsonl"
        self._rolled_back = folder / "rolled_back.jsonl"
        self._rollouts = folder / "rollouts"
        self._rollouts.mkdir(parents=True, exist_ok=True)

    def cut_to(self, step: int) -> None:
        """Keep the lines of steps under `step`."""
        for file in (self._metrics, self._ledger):
            lines = file.read_text().splitlines() if file.exists() else []
            kept = [line for line in lines if _step_of(line) < step]
            dropped = [line for line in lines if _step_of(line) >= step]
            if dropped:
                with self._rolled_back.open("a") as stream:
                    stream.writelines(f"{line}\n" for line in dropped)
            draft = file.with_suffix(".draft")
            draft.write_text("".join(f"{line}\n" for line in kept))
            draft.rename(file)

    def step(self, metrics: dict[str, Any], ledger: dict[str, Any]) -> None:
        """Append one step."""
        for file, row in ((self._ledger, ledger), (self._metrics, metrics)):
            with file.open("a") as stream:
                stream.write(json.dumps(row) + "\n")

    def rollouts(
        self,
        step: int,
        rank: int,
        groups: Sequence[TrainGroup],
        policy_logprobs: Sequence[Sequence[float]],
    ) -> None:
        """Write a rank's groups of a step with everything that its loss is made of."""
        logprobs = iter(policy_logprobs)
        rows = [
            group.model_dump(mode="json")
            | {"policy_logprobs": [next(logprobs) for _ in group.advantages]}
            for group in groups
        ]
        file = self._rollouts / f"step-{step:06d}.rank{rank}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def step_metrics(batch: Batch, policy_version: int) -> dict[str, Any]:
    """What a step's groups say by themselves; see `docs/metrics.md` for each key."""
    rewards = [r for group in batch.groups for r in group.rewards]
    completions = [c for group in batch.groups for c in group.rollout.completions]
    lags = [policy_version - c.oldest_policy_version for c in completions]
    totals = [r.total for r in rewards]
    return {
        "reward_mean": fmean(totals),
        "reward_std": pstdev(totals),
        "reward_terms": {
            term: fmean(r.breakdown[term] for r in rewards) for term in rewards[0].breakdown
        },
        "failure_rate": fmean(r.status != "ok" for r in rewards),
        "policy_lag_mean": fmean(lags),
        "policy_lag_max": max(lags),
        "num_groups": len(batch.groups),
        "num_stale": len(batch.outcome.stale),
        "num_dead": len(batch.outcome.dead),
        "num_replaced": len(batch.outcome.replaced),
        "groups_without_spread": sum(not any(group.advantages) for group in batch.groups),
        "completion_length_mean": fmean(len(c.token_ids) for c in completions),
        "truncated_rate": fmean(c.finish_reason == "length" for c in completions),
        "num_tokens": sum(len(c.token_ids) for c in completions),
    }


def ledger_line(batch: Batch, step: int) -> dict[str, Any]:
    """The line that says what a step used. It trained version `step`, and published the next."""
    return {
        "step": step,
        "policy_version": step,
        "group_ids": [g.rollout.group_id for g in batch.groups],
        "stale": batch.outcome.stale,
        "dead": batch.outcome.dead,
        "no_spread": batch.outcome.replaced,
    }


def _step_of(line: str) -> int:
    """The step of a line; a line torn by a crash belongs to no kept step."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return 1 << 60
