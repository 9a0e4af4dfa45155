"""Trains the tiny model on fixed batches, once for each case: one rank of `test_engine_ranks`.

    python -m tests.integration.engine_driver train|resume FOLDER CASE...

Writes for each case `{case}-{num_ranks}.rank0` with each step's metrics, `.start` and `.end` with
what the engine exports before and after, and a folder as `save_pretrained` makes it. Ends by
kill -9.
"""

import errno
import gc
import json
import math
import os
import random
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from scene_data.dataset import Sample, SceneDataset
from scene_data.templates import prompt_messages
from scene_data.toy.scenes import SIDE, make_toy, render, toy_scene
from scene_graph.boxes import RELATIVE_1000
from services.errors import InvalidInputError, SggError, UnavailableError
from services.schemas.groups import TrainGroup
from services.schemas.rollouts import Completion
from services.schemas.weights import WeightManifest
from services.settings import Settings
from services.settings.run import DataSettings
from services.settings.training import AlgorithmSettings
from tests.train_groups import completion, train_group
from trainer.algorithms.weighting import completion_weights
from trainer.batches.batch import MicroBatch
from trainer.batches.preparation import Preparation
from trainer.batches.shares import RankBatch, pack, share_out, unpack
from trainer.policy.engine import PolicyEngine, init_process_group
from trainer.ranks.group import Ranks
from trainer.ranks.shared_file import SharedFile
from trainer.ranks.stop import StopRequest
from trainer.ranks.training_rows import open_training_rows
from weight_sync.publishing.publisher import WeightPublisher
from weight_sync.shards import Shard

STEPS, SAVED_AT, SPOILT = 3, 2, 99
NUM_GROUPS, GROUP_SIZE = 4, 3
RATE = 1e-3
Spoil = Callable[[MicroBatch], None]
BF16 = {"dtype": "bfloat16"}
UPDATES = {"num_mini_batches": 2, "num_iterations": 2}
FROZEN: dict[str, dict[str, Any]] = {
    "algorithm": {**UPDATES, "old_logprobs": "trainer", "correction": "truncate"},
    "trainer": {"freeze_vision_tower": True, "freeze_language_model": True},
}
LORA: dict[str, dict[str, Any]] = {
    "lora": {"rank": 4},
    "algorithm": {**UPDATES, "beta": 0.1},
    "trainer": {"gradient_checkpointing": True},
}
RECURRENT: dict[str, dict[str, Any]] = {
    "model": {"path": "qwen3_5", "min_pixels": 16384, "max_pixels": 16384},
    "trainer": {"gradient_checkpointing": True},
}
CASES: dict[str, dict[str, dict[str, Any]]] = {
    "zero0": {"deepspeed": {"zero_stage": 0}},
    "zero1": {"deepspeed": {"zero_stage": 1}},
    "zero2": {"deepspeed": {"zero_stage": 2}},
    "zero3": {"deepspeed": {"zero_stage": 3, "export_bucket_gib": 1e-4}},
    "zero1-offload": {"deepspeed": {"zero_stage": 1, "offload_optimizer": True}},
    "zero2-offload": {"deepspeed": {"zero_stage": 2, "offload_optimizer": True}},
    "zero3-offload": {
        "deepspeed": {"zero_stage": 3, "offload_optimizer": True, "offload_parameters": True},
        "trainer": {"gradient_checkpointing": True},
    },
    "zero0-frozen": {"deepspeed": {"zero_stage": 0}, **FROZEN},
    "zero3-frozen": {"deepspeed": {"zero_stage": 3}, **FROZEN},
    "zero2-reference": {"deepspeed": {"zero_stage": 2}, "algorithm": {"beta": 0.1}},
    "zero3-reference": {"deepspeed": {"zero_stage": 3}, "algorithm": {"beta": 0.1}},
    "zero0-lora": {"deepspeed": {"zero_stage": 0}, **LORA},
    "zero2-lora": {"deepspeed": {"zero_stage": 2}, **LORA},
    "zero3-lora": {"deepspeed": {"zero_stage": 3}, **LORA},
    "zero2-bf16": {"deepspeed": {"zero_stage": 2}, "model": BF16},
    "zero2-offload-bf16": {
        "deepspeed": {"zero_stage": 2, "offload_optimizer": True},
        "model": BF16,
    },
    "zero3-bf16": {
        "deepspeed": {"zero_stage": 3},
        "model": BF16,
        "trainer": {"float32_head": True},
    },
    "zero0-recurrent": {"deepspeed": {"zero_stage": 0}, **RECURRENT},
    "zero3-recurrent": {"deepspeed": {"zero_stage": 3}, **RECURRENT},
}
RESUMED = ("zero2-offload", "zero3", "zero3-frozen", "zero3-lora")
"""Cases that are saved after `SAVED_AT` steps, and continued by another start."""


def settings_of(case: str, folder: Path, num_ranks: int) -> Settings:
    sections = CASES[case]
    model = {"path": "model", "min_pixels": 12544, "max_pixels": 12544, **sections.get("model", {})}
    lora = "lora" in sections
    return Settings.model_validate(
        {
            **sections,
            "model": {"dtype": "float32", **model, "path": str(folder / model["path"])},
            "data": {"train": "unused"},
            "trainer": {
                "groups_per_step": NUM_GROUPS,
                "group_size": GROUP_SIZE,
                "num_ranks": num_ranks,
                "max_grad_norm": 0.05,  # small enough to clip, as the norms show
                **sections.get("trainer", {}),
            },
            "weights": {"transport": "lora" if lora else "shm"},
        }
    )


@dataclass(kw_only=True)
class Trained:
    """An engine as the batches of a case want it."""

    engine: PolicyEngine
    algorithm: AlgorithmSettings
    ranks: Ranks

    def batches_of(self, step: int) -> list[list[MicroBatch]]:
        """This rank's micro batches, of one completion or two."""
        engine, ranks = self.engine, self.ranks
        shares = partial(parts_of, step, ranks.size, engine, self.algorithm)
        part = ranks.scatter(shares, pack, unpack)
        assert len(part.groups) == NUM_GROUPS // ranks.size, "no rank gets what it does not train"
        return laid_out(part, engine)


def laid_out(part: RankBatch, engine: Any) -> list[list[MicroBatch]]:
    """[mini-batch][micro batch] of a part; the engine has `processor` and `rope_index`."""
    return Preparation(Scenes(), engine.processor, engine.rope_index)(part).mini_batches


def parts_of(
    step: int, num_ranks: int, engine: Any, algorithm: AlgorithmSettings
) -> list[RankBatch]:
    """What each rank trains of a step; the same groups whatever the ranks."""
    picked = torch.Generator().manual_seed(step)
    groups = [_group(index, picked, engine.processor) for index in range(NUM_GROUPS)]
    lengths = [len(c.token_ids) for g in groups for c in g.rollout.completions]
    flat = completion_weights(algorithm, lengths, [False] * len(lengths), max_tokens=64)
    weights = [flat[i : i + GROUP_SIZE] for i in range(0, len(flat), GROUP_SIZE)]
    return share_out(
        groups,
        weights,
        num_ranks=num_ranks,
        max_tokens=80,
        num_mini_batches=algorithm.num_mini_batches,
    )


class Scenes(SceneDataset):
    """Toy scenes without a file."""

    def __init__(self) -> None:
        pass

    def __getitem__(self, index: Any) -> Any:
        graph = toy_scene(0, index, heldout=False)
        return Sample(
            image_id=str(index), image_bytes=render(graph), width=SIDE, height=SIDE, graph=graph
        )


def _group(index: int, picked: torch.Generator, processor: Any) -> TrainGroup:
    messages = [m.model_dump() for m in prompt_messages("toy", RELATIVE_1000)]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    resize = processor.image_processor
    pads = resize.size["longest_edge"] // (resize.patch_size * 2) ** 2
    text = text.replace("<|image_pad|>", "<|image_pad|>" * pads)
    group = train_group(
        processor.tokenizer(text)["input_ids"],
        [_completion(picked) for _ in range(GROUP_SIZE)],
        index=index,
    )
    advantages = torch.randn(GROUP_SIZE, generator=picked).tolist()
    return group.model_copy(update={"advantages": advantages})


def _completion(picked: torch.Generator) -> Completion:
    length = int(torch.randint(5, 30, (), generator=picked))
    noise = 0.1 * torch.randn(length, generator=picked)
    tokens = torch.randint(20, 500, (length,), generator=picked).tolist()
    return completion(tokens, (-6.2 + noise).tolist())


def train(trained: Trained, spoil: Spoil, steps: range) -> list[dict[str, Any]]:
    """A spoilt step, and then some good ones."""
    assert_skips(trained, spoil)
    rows = []
    for step in steps:
        mini_batches = trained.batches_of(step)
        assert sum(map(len, mini_batches)) >= 3
        output = trained.engine.train_step(mini_batches, RATE)
        orders = [order for order, _ in in_order(mini_batches)]
        rows.append(
            trained.ranks.combine(output.stats)
            | output.metrics
            | {
                "first_logprobs": output.policy_logprobs[orders.index(_first(mini_batches))],
                "logprobs": output.policy_logprobs,
            }
        )
    return rows


def in_order(mini_batches: list[list[MicroBatch]]) -> list[tuple[tuple[int, int], MicroBatch]]:
    """Completions by group and place, with the micro batch that each is in."""
    micro_batches = [batch for mini_batch in mini_batches for batch in mini_batch]
    found = [(order, batch) for batch in micro_batches for order in batch.order]
    return sorted(found, key=lambda each: each[0])


def _first(mini_batches: list[list[MicroBatch]]) -> tuple[int, int]:
    return mini_batches[0][0].order[0]


def assert_skips(trained: Trained, spoil: Spoil) -> None:
    """One number of each mini-batch on the last rank, and no rank's weights change.

    Nor does the optimizer, as all the steps that follow show.
    """
    mini_batches = trained.batches_of(SPOILT)
    if trained.ranks.rank == trained.ranks.size - 1:
        for mini_batch in mini_batches:
            spoil(mini_batch[0])
    before = dict(trained.engine.weights())
    assert trained.engine.train_step(mini_batches, RATE).skipped, spoil.__name__
    after = dict(trained.engine.weights())
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def skip_second(trained: Trained) -> None:
    """The second mini-batch has a number that is not finite: only the first gives updates."""
    mini_batches = trained.batches_of(SPOILT)
    if trained.ranks.rank == trained.ranks.size - 1:
        _infinite_weights(mini_batches[1][0])
    output = trained.engine.train_step(mini_batches, RATE)
    finite = [[math.isfinite(norm) for norm in iteration] for iteration in output.grad_norms]
    assert finite == [[True, False]] * 2
    assert not output.skipped
    assert (output.num_skipped_updates, output.skipped_mini_batches) == (2, [1])
    assert math.isfinite(trained.ranks.combine(output.stats)["loss"])


def _nan_pixel(batch: MicroBatch) -> None:
    batch.pixel_values[0, 0] = torch.nan


def _infinite_weights(batch: MicroBatch) -> None:
    """The log-probabilities are finite, and the loss is not."""
    batch.token_weights.fill_(torch.inf)


def assert_failures_reach_every_rank(ranks: Ranks) -> None:
    """Whether rank 0 cannot make the parts or not send one of them; then the ranks meet again."""

    def fails(*_: object) -> Any:
        raise InvalidInputError("group 7 is torn")

    with pytest.raises(SggError, match="group 7 is torn"):
        ranks.scatter(fails, str.encode, bytes.decode)
    if ranks.size > 1:
        with pytest.raises(SggError, match="group 7 is torn"):
            ranks.scatter(lambda: ["part"] * ranks.size, fails, bytes.decode)
    parts = ["a", "ä" * 1000][: ranks.size]
    assert ranks.scatter(lambda: parts, str.encode, bytes.decode) == parts[ranks.rank]


def assert_rank_0_alone_reads_annotations(folder: Path, ranks: Ranks) -> None:
    """The others open the same rows all the same, and end with it where they cannot be opened."""
    if ranks.is_main:
        make_toy(folder / "toy", num_train=9, num_heldout=1)
    else:
        SceneDataset._check_rows = None  # type: ignore[method-assign, assignment]
    rows = open_training_rows(ranks, DataSettings(train=str(folder / "toy/train.parquet")))
    assert (len(rows), rows[3].image_id) == (9, "train-0-3")
    with pytest.raises(SggError, match="is not a dataset"):
        open_training_rows(ranks, DataSettings(train=str(folder / "toy/none.parquet")))


class Unserved(WeightPublisher):
    """A run's publisher where there are neither servers nor Redis."""

    async def _spread(self, *_: object) -> int:
        return 0


class Writing:
    """This rank's part in versions of a run with `shm` or `disk`."""

    def __init__(self, engine: PolicyEngine, ranks: Ranks, settings: Settings) -> None:
        self.weights = engine.weights
        self.file = SharedFile(settings, ranks, StopRequest())
        self.publisher = Unserved(settings, 1) if ranks.is_main else None
        self.folder = settings.run.folder / "weights"

    def publish(self, version: int, writers: list[int]) -> None:
        weights = self.weights(writers)
        if self.publisher is None:
            self.file.write(weights) if isinstance(weights, Shard) else deque(weights, maxlen=0)
        elif isinstance(weights, Shard):
            drafted, gather = self.file.once_drafted(weights), self.file.gather
            self.publisher.begin(drafted, version, gather_shares=gather).result()
        else:
            self.publisher.begin(weights, version).result()

    def written(self, version: int) -> tuple[bytes, WeightManifest]:
        """On rank 0, of the last version."""
        assert self.publisher is not None
        assert self.publisher._last is not None
        content = (self.folder / f"1-{version}.safetensors").read_bytes()
        return content, self.publisher._last.manifest


def assert_ranks_write_what_one_writes(trained: Trained, folder: Path) -> None:
    """One file byte for byte. Where a rank fails all go on, rank 0 says why, and no file is left.

    The ranks meet again in each export: none of them is behind the others.
    """
    tree = settings_of("zero3", folder, 2).model_dump(mode="json", exclude_none=True)
    tree |= {"run": {"root": str(folder)}, "weights": {"transport": "disk"}}
    one = Writing(trained.engine, trained.ranks, Settings.model_validate(tree))
    assert one.file.writers == [0, 1]
    one.publish(1, [0])
    alone = one.written(1) if one.publisher else None
    one.publish(2, [0, 1])
    if alone is not None:
        together = one.written(2)
        assert together[0] == alone[0]
        assert together[1].tensors == alone[1].tensors
    with failing_writes(trained.ranks.rank == 1):
        fails(one, 3, UnavailableError, "rank 1 of the trainer: cannot write weights.*Input/output")
    with failing_writes(trained.ranks.rank == 0):
        fails(one, 4, UnavailableError, "^cannot write weights to .*1-4.safetensors: Input/output")
    if one.publisher is not None:
        assert [file.name for file in one.folder.iterdir()] == ["1-2.safetensors"]
        one.folder.chmod(0o777)
    with pytest.raises(SggError, match="not a folder that you alone can write to"):
        one.publish(5, [0, 1])
    if one.publisher is not None:
        one.publisher.close()


def fails(one: Writing, version: int, error: type[SggError], match: str) -> None:
    with pytest.raises(error, match=match) if one.publisher else nullcontext():
        one.publish(version, one.file.writers)


@contextmanager
def failing_writes(here: bool) -> Iterator[None]:
    def pwrite(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.MonkeyPatch.context() as patch:
        if here:
            patch.setattr(os, "pwrite", pwrite)
        yield


def draws() -> list[float]:
    """One of each source of randomness."""
    return [torch.rand(()).item(), float(np.random.rand()), random.random()]


def run(case: str, folder: Path, ranks: Ranks, *, resume: bool) -> None:
    settings = settings_of(case, folder, ranks.size)
    engine = PolicyEngine(settings, ranks.size)
    trained = Trained(engine=engine, algorithm=settings.algorithm, ranks=ranks)
    name = folder / f"{case}-{ranks.size}{'-resumed' * resume}"
    report: dict[str, Any] = {"steps": []}
    state = folder / f"{case}.state"
    start = dict(engine.weights())
    if resume:
        engine.load_state(state)
    else:
        report["steps"] += train(trained, _nan_pixel, range(SAVED_AT))
        if case in RESUMED:
            state.mkdir(exist_ok=True)
            ranks.barrier()
            engine.save_state(state)
    report["draws"] = draws()
    report["steps"] += train(trained, _infinite_weights, range(SAVED_AT, STEPS))
    if engine.reference is not None:
        batch = trained.batches_of(0)[0][0]
        report["reference"] = engine.reference.logprobs(batch)[0].tolist()
    if settings.algorithm.num_mini_batches > 1:
        skip_second(trained)
    end = dict(engine.weights())
    if (case, ranks.size, resume) == ("zero3", 2, False):
        assert_ranks_write_what_one_writes(trained, folder)
    engine.save_pretrained(name)
    ranks.barrier()
    if ranks.is_main:
        save_file(start, name.with_suffix(".start"))
        save_file(end, name.with_suffix(".end"))
    name.with_suffix(f".rank{ranks.rank}").write_text(json.dumps(report))


def main() -> None:
    what, folder, *cases = sys.argv[1:]
    torch.set_num_threads(1)
    init_process_group(60)
    ranks = Ranks(60)
    assert_failures_reach_every_rank(ranks)
    assert_rank_0_alone_reads_annotations(Path(folder), ranks)
    for case in cases:
        run(case, Path(folder), ranks, resume=what == "resume")
        gc.collect()
    ranks.barrier()
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
