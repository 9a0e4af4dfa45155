"""Images, and batches made beside the step before."""

import dataclasses
import random
import threading
from itertools import chain
from typing import Any

import pytest

from scene_data.dataset import Sample
from scene_data.toy.tiny_model import make_tiny_model
from services.errors import InvalidInputError, WaitTimeoutError
from services.settings import Settings
from tests.train_groups import completion, noise_sample, random_group, train_group
from trainer.batches.images import image_features
from trainer.batches.preparation import Preparation, Prepared, PreparedBatches
from trainer.batches.shares import pack, share_out, unpack
from trainer.policy.model import load_model, load_processor
from trainer.types import Outcome, StepBatch, UnusedGroup

SAMPLES = [noise_sample(random.Random(i), 112 + 28 * (i % 2), 112) for i in range(4)]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = tmp_path_factory.mktemp("model")
    make_tiny_model(folder)
    return Settings.model_validate(
        {
            "model": {
                "path": str(folder),
                "dtype": "float32",
                "min_pixels": 12544,
                "max_pixels": 25088,
            },
            "data": {"train": "unused"},
        }
    )


@pytest.fixture(scope="module")
def processor(settings: Settings) -> Any:
    return load_processor(settings)


@pytest.mark.parametrize("size", [(112, 112), (56, 28), (640, 480), (97, 211)])
def test_an_image_has_a_token_for_four_patches(processor: Any, size: tuple[int, int]) -> None:
    features = image_features(noise_sample(random.Random(0), *size), processor)
    assert len(features.pixels) == int(features.grid.prod()) == 4 * features.num_tokens


def torn() -> Sample:
    whole = noise_sample(random.Random(0))
    return dataclasses.replace(whole, image_bytes=whole.image_bytes[: len(whole.image_bytes) // 2])


@pytest.mark.parametrize("sample", [torn(), noise_sample(random.Random(0), 1000, 4)])
def test_what_cannot_be_prepared_is_named(processor: Any, sample: Sample) -> None:
    """Both have a header that opens: one ends too early, the other is too long for any grid."""
    with pytest.raises(InvalidInputError, match=f"image {sample.image_id} cannot be prepared"):
        image_features(sample, processor)


class CountingDataset:
    def __init__(self) -> None:
        self.read: list[int] = []

    def __getitem__(self, index: int) -> Sample:
        self.read.append(index)
        return SAMPLES[index]


def test_ranks_prepare_their_own_groups_and_each_image_once(
    settings: Settings, processor: Any
) -> None:
    model, rng = load_model(settings), random.Random(0)
    groups = [random_group(rng, prompt=6, lengths=[3, 5, 2], index=i) for i in range(4)]
    for group in groups:
        count = image_features(SAMPLES[group.index], processor).num_tokens
        group.rollout.prompt_token_ids[2:2] = [model.config.image_token_id] * count
    weights = [[float(10 * g + i) for i in range(3)] for g in range(4)]
    datasets = [CountingDataset(), CountingDataset()]
    parts = share_out(groups, weights, num_ranks=2, max_tokens=64)
    ranks = [
        Preparation(dataset, processor, model.model.get_rope_index)(part)  # type: ignore[arg-type]
        for dataset, part in zip(datasets, parts, strict=True)
    ]
    assert sorted(datasets[0].read + datasets[1].read) == [0, 1, 2, 3]
    assert [len(dataset.read) for dataset in datasets] == [2, 2]
    for rank in ranks:
        found: dict[tuple[int, int], tuple[list[int], float]] = {}
        for micro_batch in chain.from_iterable(rank.mini_batches):
            for n, order in enumerate(micro_batch.order):
                here = micro_batch.loss_mask[n].bool()
                weight = float(micro_batch.token_weights[n].max())
                found[order] = (micro_batch.targets[n][here].tolist(), weight)
        expected = [
            (completion.token_ids, weights[group.index][i])
            for group in rank.groups
            for i, completion in enumerate(group.rollout.completions)
        ]
        assert [found[order] for order in sorted(found)] == expected
    same = {key: [rank.metrics[key] for rank in ranks] for key in ranks[0].metrics}
    assert all(a == b for key, (a, b) in same.items() if key != "preparation_s")


def test_a_part_travels_exactly_and_alone() -> None:
    rng = random.Random(0)
    groups = [random_group(rng, prompt=3 + i, lengths=[1 + i, 5], index=i) for i in range(4)]
    exact = completion([2**31 - 1], [-1e-300])
    groups[0] = train_group([0], [exact, completion([7, 8], [-0.1, 5e-5])])
    weights = [[0.1, 1 / 3]] * 4
    parts = share_out(groups, weights, num_ranks=2, max_tokens=64, num_mini_batches=2)
    assert sorted(group.index for part in parts for group in part.groups) == [0, 1, 2, 3]
    for part in parts:
        body = pack(part)
        assert unpack(body) == part
        others = {f'"g{i}"'.encode() for i in range(4)} - {
            f'"g{group.index}"'.encode() for group in part.groups
        }
        assert not any(name in body for name in others)


class Source:
    """Notes what is taken; a step's batch comes when it is let."""

    def __init__(self, *let: int) -> None:
        self.taken: list[int] = []
        self.began = threading.Semaphore(0)
        self.let = {step: threading.Event() for step in range(5)}
        for step in let:
            self.let[step].set()

    def take(self, step: int) -> StepBatch:
        self.taken.append(step)
        self.began.release()
        assert self.let[step].wait(60)
        if step == 3:
            raise WaitTimeoutError("no scored group")
        return StepBatch(groups=[], outcome=Outcome(stale=[str(step)]))

    def prepare(self, batch: StepBatch) -> Prepared:
        if batch.outcome.stale == ["2"]:
            raise InvalidInputError("image 2 cannot be prepared")
        return Prepared(groups=[], mini_batches=[], metrics={"step": float(batch.outcome.stale[0])})


def test_the_next_batch_is_made_while_a_step_trains() -> None:
    source = Source(0)
    batches = PreparedBatches(source.take, source.prepare, ahead=True, num_steps=2)
    assert batches.take_with_advantages(0).outcome.stale == ["0"]
    assert source.taken == [0]
    assert batches.prepared().metrics == {"step": 0}
    for _ in range(2):
        assert source.began.acquire(timeout=60)  # of step 1, though nobody has asked for it
    source.let[1].set()
    assert batches.take_with_advantages(1).outcome.stale == ["1"]
    assert batches.prepared().metrics == {"step": 1}
    assert source.taken == [0, 1], "nothing is taken after the last step"


def test_a_skipped_step_takes_no_batch_that_waits_for_a_later_version() -> None:
    source = Source(0, 1)
    batches = PreparedBatches(source.take, source.prepare, ahead=True, num_steps=5)
    for _ in range(3):
        batches.take_with_advantages(0)
        batches.prepared()
    for _ in range(4):  # the last one may still begin
        assert source.began.acquire(timeout=60)
    assert source.taken == [0, 1, 1, 1], "version 1 is published when step 0 is done, 2 is not"


def test_a_step_that_was_tried_again_names_what_each_of_its_batches_left_unused() -> None:
    def taken(name: str) -> StepBatch:
        left = UnusedGroup(state="stale", position=0, group_id=name, index=0, group=None)
        return StepBatch(groups=[], outcome=Outcome(stale=[name]), unused=[left])

    batch = taken("b").after([taken("a")])
    assert [each.group_id for each in batch.unused] == batch.outcome.stale == ["a", "b"]


def test_without_lag_nothing_is_taken_early() -> None:
    source = Source(0, 1)
    batches = PreparedBatches(source.take, source.prepare, ahead=False, num_steps=2)
    batches.take_with_advantages(0)
    batches.prepared()
    assert source.taken == [0]
    batches.take_with_advantages(1)
    assert batches.prepared().metrics == {"step": 1}


def test_errors_of_the_thread_are_raised_in_the_loop() -> None:
    source = Source(2, 3)
    batches = PreparedBatches(source.take, source.prepare, ahead=True, num_steps=5)
    batches.take_with_advantages(2)
    with pytest.raises(InvalidInputError, match="image 2"):
        batches.prepared()
    batches = PreparedBatches(source.take, source.prepare, ahead=True, num_steps=5)
    with pytest.raises(WaitTimeoutError, match="no scored group"):
        batches.take_with_advantages(3)
