"""The promises of docs/architecture.md, "What holds after a crash", read from what a run left."""

import asyncio
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from rollout_service.engine import GroupRequest
from rollout_service.fake.engine import FakeEngine
from rollout_service.fake.vocabulary import vocabulary_of
from scene_data.dataset import open_dataset
from scene_data.sampler import EpochSampler, group_id
from services.run_folder.records import RolloutRecord, read_rollouts
from services.schemas.weights import TensorEntry, WeightManifest
from services.settings import Settings
from trainer.checkpoints.checkpoint import TrainerState
from trainer.collection.cursor import CursorState
from weight_sync.engine import Staged

_TOLERANCE = 2e-3
"""Between log-probabilities of vLLM and transformers in float32, of the same weights and tokens."""


@dataclass(kw_only=True)
class History:
    """What a run that was stopped says of itself."""

    settings: Settings
    ledger: list[dict[str, Any]]
    metrics: list[dict[str, Any]]
    state: TrainerState
    """The last checkpoint's."""
    records: list[RolloutRecord] = field(default_factory=list)
    """All groups that were trained on."""


def read_history(
    settings: Settings,
    ledger: list[dict[str, Any]],
    metrics: list[dict[str, Any]],
    state: TrainerState,
) -> History:
    """The committed part: what is of later steps than the last checkpoint would be done again."""
    ledger, metrics = (
        [row for row in rows if row["step"] < state.step] for rows in (ledger, metrics)
    )
    records = [one for row in ledger for one in read_rollouts(settings.run.folder, row["step"])]
    return History(settings=settings, ledger=ledger, metrics=metrics, state=state, records=records)


def violations(history: History) -> list[str]:
    """Every broken promise, in words; none of a run that kept them."""
    checks = (_steps, _used_once, _none_lost, _ledger_and_records, _spans, _told_versions)
    return [text for check in checks for text in check(history)]


def _steps(history: History) -> Iterator[str]:
    """Each step is there once, in ledger and metrics, up to the checkpoint."""
    wanted = list(range(history.state.step))
    for name, rows in (("ledger", history.ledger), ("metrics", history.metrics)):
        steps = [int(row["step"]) for row in rows]
        if steps != wanted:
            yield f"{name}: steps {steps[:5]}…, and not 0 to {history.state.step - 1}"


def _ended(row: dict[str, Any]) -> list[str]:
    return [*row["group_ids"], *row["dead"], *row["no_spread"]]


def _used_once(history: History) -> Iterator[str]:
    counts = Counter(name for row in history.ledger for name in row["group_ids"])
    for name, count in counts.items():
        if count > 1:
            yield f"{name} was trained on {count} times"


def _none_lost(history: History) -> Iterator[str]:
    """What the cursor calls done is in the ledger; and nothing died, for no data was bad."""
    dead = [name for row in history.ledger for name in row["dead"]]
    if dead:
        yield f"dead without a fault of theirs: {dead}"
    ended = {name for row in history.ledger for name in _ended(row)}
    order = _order(history.settings)
    for position in _done(history.state.cursor):
        name = group_id(history.settings.run.name, *order.at(position))
        if name not in ended:
            yield f"{name} is lost: position {position} is done, and no step has it"
    num_done = history.state.cursor.low + len(history.state.cursor.ahead)
    if num_done != len(ended):
        yield f"{len(ended)} groups ended, and {num_done} positions are done"


def _order(settings: Settings) -> EpochSampler:
    rows = len(open_dataset(settings.data.train))
    return EpochSampler(rows, settings.run.seed)


def _done(cursor: CursorState) -> list[int]:
    return [*range(cursor.low), *cursor.ahead]


def _ledger_and_records(history: History) -> Iterator[str]:
    """The groups that are kept of a step are those that its ledger line names."""
    kept: dict[int, list[str]] = {}
    for record in history.records:
        kept.setdefault(record.step, []).append(record.rollout.group_id)
    for row in history.ledger:
        if sorted(kept.get(int(row["step"]), [])) != sorted(row["group_ids"]):
            yield f"step {row['step']}: ledger and kept groups differ"


def _spans(history: History) -> Iterator[str]:
    """Spans cover the tokens, versions rise, and none is older or newer than allowed."""
    oldest = max(history.settings.trainer.max_policy_lag, history.settings.trainer.max_token_lag)
    for record in history.records:
        for completion in record.rollout.completions:
            ends = [0, *(span.end for span in completion.policy_versions)]
            starts = [span.start for span in completion.policy_versions]
            versions = [span.policy_version for span in completion.policy_versions]
            where = f"step {record.step}, {record.rollout.group_id}"
            if starts != ends[:-1] or ends[-1] != len(completion.token_ids):
                yield f"{where}: spans {starts} to {ends[1:]} of {len(completion.token_ids)} tokens"
            if versions != sorted(versions):
                yield f"{where}: versions go back: {versions}"
            if not record.step - oldest <= versions[0] <= versions[-1] <= record.step:
                yield f"{where}: sampled by versions {versions}"


def _told_versions(history: History) -> Iterator[str]:
    """The tokens are what the version that the first of them names answers to this prompt.

    The fake engine's answers are a function of prompt, picture, seed and version, and nothing else.
    vLLM's log-probabilities are those that the trainer's weights of that version give; they tell
    something only where those of another version differ.
    """
    if history.settings.rollout.engine == "fake":
        yield from asyncio.run(_untrue(history))
        return
    stale = 0.0
    for record in history.records:
        own, others = _gaps(record)
        stale = max(stale, others)
        if own > _TOLERANCE:
            where = f"step {record.step}, {record.rollout.group_id}"
            yield f"{where}: log-probabilities are {own:g} off those of version {record.step}"
    if history.settings.trainer.max_policy_lag and stale <= _TOLERANCE:
        yield f"log-probabilities tell no version from the next: {stale:g}"


def _gaps(record: RolloutRecord) -> tuple[float, float]:
    """The largest difference to the trained version's log-probabilities: its tokens, and others."""
    own, others = [0.0], [0.0]
    for completion, ours in zip(record.rollout.completions, record.policy_logprobs, strict=True):
        for span in completion.policy_versions:
            gaps = own if span.policy_version == record.step else others
            for number in range(span.start, span.end):
                trained = ours[number]
                gap = math.inf if trained is None else trained - completion.rollout_logprobs[number]
                gaps.append(abs(gap))
    return max(own), max(others)


async def _untrue(history: History) -> list[str]:
    settings, found = history.settings, []
    rows = open_dataset(settings.data.train)
    vocabulary = vocabulary_of(settings.model)
    for record in history.records:
        assert record.prompt is not None
        told = record.rollout.completions[0].policy_versions[0].policy_version
        engine = FakeEngine(tokens_per_s=1e12, max_model_len=512, vocabulary=vocabulary)
        await engine.pause()
        await engine.load_weights(Staged(), _manifest(told))
        await engine.resume()
        request = GroupRequest(
            messages=record.prompt.messages,
            images=[rows[record.index].image_bytes],
            sampling=record.prompt.sampling,
            request_id=record.rollout.group_id,
        )
        wanted = [c.token_ids for c in (await engine.sample(request)).completions]
        if [c.token_ids for c in record.rollout.completions] != wanted:
            where = f"step {record.step}, {record.rollout.group_id}"
            found.append(f"{where}: not what version {told} answers")
    return found


def _manifest(version: int) -> WeightManifest:
    """The engine reads the version, and nothing else."""
    tensors = {"any": TensorEntry(shape=[1], dtype="float32")}
    return WeightManifest(
        policy_version=version, incarnation=1, step=version, vision_trained=False, tensors=tensors
    )
