"""The groups that a run keeps, whole."""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, ValidationError, model_validator

from services.errors import InvalidInputError
from services.run_folder.paths import RunFolder
from services.schemas.groups import TrainGroup

GroupState = Literal["trained", "zero_variance", "stale", "dead"]
"""What became of a group in its step. `zero_variance`: `algorithm.dynamic_sampling` replaced it; a
group of equal rewards that was trained on is `trained`. `stale`: it was asked for again."""

_GZIP = b"\x1f\x8b"
"""How a gzip member begins; no JSON does."""


class RolloutRecord(TrainGroup):
    """A line of `rollouts/step-NNNNNN.rankR.jsonl.gz`: all that a group's part of a loss is of.

    Example, shortened: `{"step": 3, "position": 14, "index": 9, "prompt": {"messages": […],
    "images": [{"sha256": "9f86…0a08", …}], …}, "rollout":
    {"group_id": "demo-e0-r9", "completions": [{"text": "<answer>…", "token_ids": […],
    "rollout_logprobs": […], "finish_reason": "stop", "policy_versions": […]}, …], …}, "rewards":
    [{"total": 7.1, "breakdown": {"edge": 0.5, …}, "status": "ok", …}, …], "advantages": [0.9, …],
    "reference": {"image_size": [160, 120], "box_space": "relative_1000", "graph": {…}},
    "policy_logprobs": [[-0.1, …], …], "trace_id": "4bf9…4736", "state": "trained"}`

    A group that was not trained on is in `step-NNNNNN.unused.jsonl.gz` of the step whose ledger
    line names it. It has no `policy_logprobs`; without rewards it has no `advantages` either.
    """

    # A policy that has diverged has NaN, which JSON has not. A later release may write more.
    model_config = ConfigDict(allow_inf_nan=True, ser_json_inf_nan="null", extra="ignore")

    step: int
    """From 0; also the policy_version that was trained."""
    policy_logprobs: list[list[float | None]]
    """[completion][token] of the trainer before the step's first update; null where it is not
    finite."""
    trace_id: str | None
    """The trace of the group's spans, 32 hexadecimal digits; None where nothing was traced."""
    state: GroupState = "trained"
    reason: str = ""
    """Why a group is dead."""

    @model_validator(mode="after")
    def _one_logprob_a_token(self) -> "RolloutRecord":
        for number, one in enumerate(self.rollout.completions):
            if len(one.rollout_logprobs) != len(one.token_ids):
                raise ValueError(
                    f"completion {number} has {len(one.rollout_logprobs)} rollout_logprobs for "
                    f"{len(one.token_ids)} tokens"
                )
        return self


def read_rollouts(run: Path, step: int) -> list[RolloutRecord]:
    """The groups that a step was trained on, of all ranks, by their place in the data order.

    Raises:
        InvalidInputError: A line is cut or damaged.
    """
    records = [record for file in RunFolder(run).rollout_files(step) for record in _records(file)]
    return sorted(records, key=lambda record: record.position)


def parse_record(line: bytes, where: str) -> RolloutRecord:
    """The record in a line.

    Args:
        line: Of a file of `rollouts/`.
        where: The line, for the message.

    Raises:
        InvalidInputError: It is cut or damaged, or of a later release.
    """
    try:
        return RolloutRecord.model_validate_json(line)
    except ValidationError as error:
        raise InvalidInputError(f"{where} is cut or damaged: {error.errors()[0]['msg']}") from error


def packed(record: RolloutRecord) -> bytes:
    """A record as a file has it: a gzip member, so that it can be read without those before it.

    A file of such members is one for `zcat` too. Level 1: higher ones take up to six times as long,
    and 7 % off.
    """
    return gzip.compress(record.model_dump_json().encode() + b"\n", compresslevel=1, mtime=0)


def unpacked(body: bytes, where: str) -> bytes:
    """The text of a file's bytes, or of one record's; earlier releases compressed none.

    Args:
        body: The bytes.
        where: They are from, for the message.

    Raises:
        InvalidInputError: They are cut or damaged.
    """
    if not body.startswith(_GZIP):
        return body
    try:
        return gzip.decompress(body)
    except (OSError, EOFError, zlib.error) as error:
        raise InvalidInputError(f"{where} is cut or damaged: {error}") from error


def record_lines(file: Path) -> list[bytes]:
    """The lines of a file of `rollouts/`.

    Raises:
        InvalidInputError: It is cut or damaged.
    """
    # As bytes: sampled text may have characters that end a line of text, and none of JSON's.
    return unpacked(file.read_bytes(), str(file)).splitlines()


def _records(file: Path) -> Iterator[RolloutRecord]:
    for number, line in enumerate(record_lines(file), start=1):
        yield parse_record(line, f"{file}:{number}")
