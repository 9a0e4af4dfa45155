"""Groups are asked for as there is room, with prompts that were made before."""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scene_data.dataset import Sample, UnusableRowError
from scene_data.sampler import EpochSampler
from scene_graph.notations.answer import NotationName
from scene_graph.notations.notation import answer_grammar
from services.models.grammar_library import grammar_library
from services.redis.client import connect
from services.redis.keys import PROMPT_LANES
from services.schemas.common import ImageRef
from services.schemas.prompts import PromptGroup
from services.settings import Settings
from services.telemetry import Tracing
from tests.memory_queue import MemoryQueue
from tests.train_groups import noise_sample
from trainer.collection.cursor import Cursor
from trainer.collection.group_pool import GroupPool
from trainer.collection.image_sharing import ImageSharing
from trainer.collection.prompts import PromptSource
from trainer.collection.requests import GroupRequests
from trainer.records.tracing import SERVICE, GroupTraces

GROUPS, ROWS = 2, 12


class Rows(list[Sample]):
    """Notes which rows are read."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        super().__init__(samples)
        self.read: list[int] = []
        self.unusable: set[int] = set()

    def __getitem__(self, index: Any) -> Any:
        self.read.append(index)
        if index in self.unusable:
            raise UnusableRowError(f"row {index}: an object id comes twice")
        return super().__getitem__(index)


def requests_of(settings: Settings, rows: Rows, queue: MemoryQueue) -> GroupRequests:
    prompts = PromptSource(settings, rows, [7])  # type: ignore[arg-type]
    return GroupRequests(
        queue,
        GroupPool(settings.trainer, settings.algorithm),
        prompts,
        Cursor(),
        ImageSharing(settings, connect(settings.redis)),
        GroupTraces(Tracing(SERVICE, None)),
        num_ahead=GROUPS,
    )


async def asked(queue: MemoryQueue) -> list[PromptGroup]:
    """All that is on the queue, once, in whatever order its lanes have."""
    found = list[PromptGroup]()
    while (lease := await queue.claim(PROMPT_LANES, "s", lease_s=60, block_s=0)) is not None:
        found.append(PromptGroup.model_validate_json(lease.body))
    return found


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.model_validate(
        {
            "run": {"name": "run", "root": str(tmp_path)},
            "model": {"path": "unused", "box_space": "relative_1000"},
            "data": {"train": "unused", "template": "toy"},
            "trainer": {"groups_per_step": GROUPS, "group_size": 2, "max_policy_lag": 0},
        }
    )


async def test_the_next_steps_prompts_are_made_while_there_is_no_room(settings: Settings) -> None:
    order = EpochSampler(ROWS, settings.run.seed)
    rows = [order.at(position)[1] for position in range(ROWS)]
    samples = [noise_sample(random.Random(i)) for i in range(ROWS)]
    samples[rows[3]] = replace(samples[rows[3]], image_bytes=b"")
    dataset, queue = Rows(samples), MemoryQueue()
    requests = requests_of(settings, dataset, queue)
    await requests.fill()
    first = await asked(queue)
    assert {prompt.index for prompt in first} == set(rows[:2])
    for _, made in requests._ahead:
        made.exception()
    assert sorted(dataset.read) == sorted(rows[:4]), "a step ahead, and no more"
    assert requests.pool.num_sampling == GROUPS
    for prompt in first:
        requests.pool.close(prompt.work_id)
    requests.pool.policy_version = 1
    await requests.fill()
    second = await asked(queue)
    assert {prompt.index for prompt in second} == {rows[2], rows[4]}
    assert {prompt.min_policy_version for prompt in second} == {1}
    assert [unused.position for unused in requests.pool._unused] == [3], "only now it is dead"
    requests.close()


class Robbed(ImageSharing):
    """Somebody empties the folder of images just before the first one is shared."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, connect(settings.redis))
        self.was_robbed = False

    async def share(self, images: Sequence[ImageRef]) -> None:
        if not self.was_robbed:
            self.was_robbed = True
            self._images.remove([image.sha256 for image in images])
        for image in images:
            self._images.get(image)


async def test_an_image_that_is_taken_before_it_is_shared_is_put_again(settings: Settings) -> None:
    queue = MemoryQueue()
    rows = Rows([noise_sample(random.Random(i)) for i in range(ROWS)])
    requests = replace(requests_of(settings, rows, queue), sharing=Robbed(settings))
    await requests.fill()
    assert len(await asked(queue)) == GROUPS
    requests.close()


async def test_rows_with_broken_annotations_end_no_run(settings: Settings) -> None:
    settings = settings.changed(trainer={"max_dead_groups": 1})
    order = EpochSampler(ROWS, settings.run.seed)
    rows = [order.at(position)[1] for position in range(ROWS)]
    dataset = Rows([noise_sample(random.Random(i)) for i in range(ROWS)])
    dataset.unusable = set(rows[:5])
    queue = MemoryQueue()
    requests = requests_of(settings, dataset, queue)
    await requests.fill()
    assert {prompt.index for prompt in await asked(queue)} == set(rows[5:7])
    dead = requests.pool._unused
    assert [(unused.state, unused.index) for unused in dead] == [("dead", n) for n in rows[:5]]
    assert dead[0].reason == f"row {rows[0]}: an object id comes twice"
    requests.close()


@pytest.mark.parametrize("thinking", [False, True])
@pytest.mark.parametrize("notation", ["json", "compact"])
def test_a_prompt_has_the_grammar_that_its_answers_are_sampled_under(
    settings: Settings, notation: NotationName, thinking: bool
) -> None:
    rows = Rows([noise_sample(random.Random(i)) for i in range(ROWS)])
    plain, _ = PromptSource(settings, rows, [7]).prompt(0)  # type: ignore[arg-type]
    assert not plain.sampling.renormalises
    data = {"notation": notation, "thinking": thinking}
    wanted = settings.changed(sampling={"constrain": True}, data=data)
    prompt, source = PromptSource(wanted, rows, [7]).prompt(0)  # type: ignore[arg-type]
    assert source.reference.notation == notation
    sampling = PromptGroup.model_validate_json(prompt.model_dump_json()).sampling
    assert sampling.accept_renormalised
    assert sampling.grammar_library == grammar_library()
    assert sampling.grammar == answer_grammar(notation, "sgg", thinking=thinking)
    few = wanted.changed(sampling={"top_k": 20, "top_p": 0.9})
    prompt, _ = PromptSource(few, rows, [7]).prompt(0)  # type: ignore[arg-type]
    assert prompt.sampling.grammar == sampling.grammar
    assert (prompt.sampling.top_k, prompt.sampling.top_p) == (20, 0.9)
    assert prompt.sampling.kept_tokens
    assert prompt.sampling.grammar_library is None, "nothing is replayed"
