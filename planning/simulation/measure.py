"""Rates of a run that was: from its `metrics.jsonl` and `rollouts/`."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, pstdev

from planning.simulation.cluster import Given
from planning.simulation.derive import RateTable
from planning.simulation.rates import Lengths, seen_lengths
from services.errors import InvalidInputError
from services.run_folder import RunFolder, StepRow, TableFollower
from services.run_folder.records import record_lines

_WARM_UP = 2
"""Steps left out: the pipeline fills."""
_FEWEST = 3
"""Others that there must be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sampled:
    """A line of `rollouts/`, as far as it is looked at."""

    server_id: str
    sampling_s: float
    prompt_tokens: int
    lengths: list[int]


def measured(folder: Path, table: RateTable) -> tuple[RateTable, Lengths]:
    """What a run shows; what it does not stays as in `table`.

    One run does not tell how pace depends on sequences, or a step on its tokens: `half_sequences`
    and `fixed_s` stay, and what goes with them is fitted to the run. Prompts are in the pace.

    Args:
        folder: The run's folder.
        table: Rates otherwise.

    Returns:
        The whole table, and the lengths of the run's completions.

    Raises:
        InvalidInputError: The folder has too little.
    """
    steps = _steps(RunFolder(folder))
    groups, num_ranks = _groups(RunFolder(folder))
    found = {
        **_sampling(steps, groups, table),
        **_training(steps, groups, table, num_ranks),
        **_publishing(steps, table),
        **_lengths(groups),
    }
    source = f"{folder}, {len(steps)} steps"
    given = {n: Given(value=v, basis="measured", source=source) for n, v in found.items()}
    return table | given, seen_lengths([group.lengths for group in groups])


def _steps(folder: RunFolder) -> list[StepRow]:
    file = folder.metrics
    if not file.is_file():
        raise InvalidInputError(f"--measure {folder.path}: there is no {file}")
    try:
        rows = TableFollower[StepRow](file).read().rows
        steps = [row for row in rows if row["step"] >= rows[0]["step"] + _WARM_UP]
        missing = {"phases_s", "num_tokens", "num_groups"} - set(steps[0] if steps else ())
    except (KeyError, TypeError) as error:
        raise InvalidInputError(f"{file} is not a GRPO run's: {error}") from error
    if len(steps) < _FEWEST:
        raise InvalidInputError(
            f"{file} has too few steps: measure a run of at least {_WARM_UP + _FEWEST} steps"
        )
    if missing:
        raise InvalidInputError(f"{file} lacks {', '.join(sorted(missing))}: is it a GRPO run's?")
    return steps


def _groups(folder: RunFolder) -> tuple[list[_Sampled], int]:
    files = folder.rollout_files()
    try:
        groups = [group for file in files for group in _read(file)]
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidInputError(
            f"--measure {folder.path}: rollouts/ cannot be read: {error}"
        ) from error
    if not groups:
        raise InvalidInputError(f"--measure {folder.path}: it has no rollouts/step-*.jsonl.gz")
    return groups, 1 + max(int(file.name.split(".")[1].removeprefix("rank")) for file in files)


def _read(file: Path) -> Iterator[_Sampled]:
    for line in record_lines(file):
        rollout = json.loads(line)["rollout"]
        yield _Sampled(
            server_id=rollout["server_id"],
            sampling_s=rollout["sampling_s"],
            prompt_tokens=len(rollout["prompt_token_ids"]),
            lengths=[len(completion["token_ids"]) for completion in rollout["completions"]],
        )


def _sampling(steps: list[StepRow], groups: list[_Sampled], table: RateTable) -> dict[str, float]:
    """Tokens a second of a server while it had work, carried to very many sequences."""
    seconds = sum(sum(step["phases_s"].values()) for step in steps)
    servers = len({group.server_id for group in groups})
    idle = fmean(step.get("sampler_idle_fraction") or 0.0 for step in steps)
    busy_s = seconds * servers * max(0.01, 1 - idle)
    pace = sum(step["num_tokens"] for step in steps) / busy_s
    share = sum(step["num_groups"] for step in steps) / len(groups)
    # Each completion of a group is there for as long as its tokens took.
    sequence_s = share * sum(g.sampling_s * sum(g.lengths) / max(g.lengths) for g in groups)
    together = max(1.0, sequence_s / busy_s)
    half = table["half_sequences"].value
    return {"tokens_per_s": pace * (together + half) / together, "prompt_s": 0.0}


def _training(
    steps: list[StepRow], groups: list[_Sampled], table: RateTable, num_ranks: int
) -> dict[str, float]:
    prompt_tokens = fmean(group.prompt_tokens for group in groups)
    tokens = fmean(step["num_tokens"] + step["num_groups"] * prompt_tokens for step in steps)
    train_s = fmean(step["phases_s"]["train"] for step in steps)
    fixed_s = min(table["fixed_s"].value, train_s)
    slowed = table["doubling_efficiency"].value ** math.log2(num_ranks)
    seen = {
        "token_s": [(train_s - fixed_s) * num_ranks * slowed / tokens],
        "prompt_tokens": [prompt_tokens],
        "prepare_s": [s["preparation_s"] for s in steps if "preparation_s" in s],
        "checkpoint_s": [
            s["phases_s"]["checkpoint"] for s in steps if "checkpoint" in s["phases_s"]
        ],
    }
    return {name: fmean(values) for name, values in seen.items() if values}


def _lengths(groups: list[_Sampled]) -> dict[str, float]:
    """For people: the simulation draws whole groups."""
    lengths = [length for group in groups for length in group.lengths]
    sigma = pstdev(math.log(max(1, length)) for length in lengths)
    return {"length_mean": fmean(lengths), "length_sigma": sigma}


def _publishing(steps: list[StepRow], table: RateTable) -> dict[str, float]:
    """The step waits for `publish`: to hand weights over, or until they are served.

    All splits get the run's time to write them: what other numbers of ranks take is not seen.
    """
    publish_s = fmean(step["phases_s"]["publish"] for step in steps)
    if any(step["policy_lag_max"] > 0 for step in steps):
        return {"export_s": publish_s, "write_s": 0.0}
    parts = {name: table[name].value for name in ("export_s", "stage_s", "commit_s")}
    parts["export_s"] = max(parts["export_s"], table["write_s"].value)
    whole = sum(parts.values())
    shrink = publish_s / whole if whole else 0.0
    return {name: part * shrink for name, part in parts.items()} | {"write_s": 0.0}
