"""Batches as tensors, made beside the step before.

What is done early, and what waits for what

| a step's       | begins when                                 | the training loop waits for it in |
|----------------|---------------------------------------------|-----------------------------------|
| groups         | the step before starts to train, where      | `wait`                            |
|                | `max_policy_lag` allows it; else when asked |                                   |
| rank's part    | rank 0 has its groups                       | `prepare`                         |
| tensors        | the rank has its part                       | `prepare`                         |

With `max_policy_lag = 0` the groups of a step are only sampled once the step before is published:
there is nothing to do early, and the loop waits for all of it.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from scene_data.dataset import SceneDataset
from services.schemas.groups import TrainGroup
from trainer.batches.batch import MicroBatch, RopeIndex, micro_batch, prepare_group
from trainer.batches.images import image_features
from trainer.batches.mask_replay import MaskReplay
from trainer.batches.shares import RankBatch
from trainer.types import StepBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A rank's part of a step."""

    groups: list[TrainGroup]
    """In the order of `policy.updates.StepOutput.policy_logprobs`."""
    mini_batches: list[list[MicroBatch]]
    """[mini-batch][micro batch]"""
    metrics: dict[str, float]
    """Those of the `RankBatch`, and `preparation_s`."""


@dataclass(frozen=True, slots=True)
class Preparation:
    """Makes tensors of this rank's part of batches.

    Each image is read, decoded and preprocessed once, and on the rank that trains its group.
    """

    dataset: SceneDataset
    processor: Any
    """The policy's."""
    rope_index: RopeIndex
    """The policy's."""
    replay: MaskReplay | None = None
    """Follows the grammar that the run samples under, if it does."""

    def __call__(self, part: RankBatch) -> Prepared:
        """Lay out a part.

        Raises:
            InvalidInputError: An image cannot be prepared, or does not fit its prompt; or a
                completion does not fit its grammar.
        """
        start = time.perf_counter()
        groups = {
            place: prepare_group(
                group,
                weights,
                image_features(self.dataset[group.index], self.processor),
                self.rope_index,
                image_token_id=self.processor.image_token_id,
                replay=self.replay,
                tokenizer=self.processor.tokenizer,
            )
            for place, group, weights in zip(
                part.plan.groups, part.groups, part.weights, strict=True
            )
        }
        vocab_size = self.replay.vocab_size if self.replay else 0
        return Prepared(
            groups=part.groups,
            mini_batches=[
                [micro_batch(rows, groups, vocab_size) for rows in mini_batch]
                for mini_batch in part.plan.mini_batches
            ],
            metrics=part.metrics | {"preparation_s": time.perf_counter() - start},
        )


@dataclass(slots=True)
class _Upcoming:
    """A step's batch on its way, in a thread."""

    step: int
    batch: Future[StepBatch] = field(default_factory=Future)
    prepared: Future[Prepared] = field(default_factory=Future)


@dataclass(slots=True)
class PreparedBatches:
    """Gives the training loop its batches, and gets the next one ready while a step trains."""

    take: Callable[[int], StepBatch]
    """`ServiceConnection.take`. Called in another thread, for one step after the other."""
    prepare: Callable[[StepBatch], Prepared]
    """Called in the same thread, on every rank."""
    ahead: bool
    """Whether a batch may be taken before the step before it is published."""
    num_steps: int
    """The run's: none is taken for this step or later ones."""
    _current: _Upcoming = field(init=False)
    _step: int = field(init=False)
    _next: _Upcoming | None = None

    def take_with_advantages(self, step: int) -> StepBatch:
        """The groups of a step, with the advantages that the collector gave them.

        Steps must follow each other. One that was skipped comes again, with the batch that was
        begun for the next one.
        """
        self._current = self._next or self._begin(step)
        self._next, self._step = None, step
        return self._current.batch.result()

    def prepared(self) -> Prepared:
        """The taken batch laid out. From here on the next one is on its way."""
        result = self._current.prepared.result()
        if self.ahead and self._step + 1 < self.num_steps:
            # Not one more than the batch was begun for: a version that is published only once this
            # step is done would be waited for.
            self._next = self._begin(self._step + 1)
        return result

    def close(self) -> None:
        """Wait for the batch that is on its way, if one is; nobody uses it.

        On every rank alike: what is under way may be a collective.
        """
        if self._next is not None and self._next.batch.exception() is None:
            self._next.prepared.exception()

    def _begin(self, step: int) -> _Upcoming:
        upcoming = _Upcoming(step)
        # A daemon: when the run ends by an error, nobody waits for groups that will not come.
        run = threading.Thread(target=self._run, args=(upcoming,), name="preparation", daemon=True)
        run.start()
        return upcoming

    def _run(self, upcoming: _Upcoming) -> None:
        try:
            batch = self.take(upcoming.step)
            upcoming.batch.set_result(batch)
            upcoming.prepared.set_result(self.prepare(batch))
        except BaseException as error:  # noqa: BLE001 - handed to the training loop, which raises it
            waiting = upcoming.prepared if upcoming.batch.done() else upcoming.batch
            waiting.set_exception(error)
