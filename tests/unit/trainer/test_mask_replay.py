"""The sampler's grammar, replayed token by token (against real vLLM: `tests/e2e`)."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from scene_data.templates import answer_text
from scene_data.toy.scenes import SIDE, toy_scene
from scene_graph.boxes import RELATIVE_1000
from scene_graph.notations.answer import NotationName
from scene_graph.notations.notation import answer_grammar
from services.bundled import toy_start
from services.errors import InvalidInputError
from services.models.kept_tokens import pack_kept
from services.schemas.common import Sampling
from services.schemas.groups import TrainGroup
from services.schemas.prompts import PromptGroup
from services.schemas.rollouts import Completion
from tests.train_groups import completion, train_group
from trainer.algorithms.logprobs import AllowedTokens, KeptTokens
from trainer.batches.batch import micro_batch, prepare_group
from trainer.batches.images import ImageFeatures
from trainer.batches.mask_replay import MaskReplay, allowed_tokens
from trainer.batches.micro_batches import PackedRow

VOCABULARY = 512
IMAGE = ImageFeatures(pixels=torch.zeros(4, 6), grid=torch.tensor([1, 4, 1]), num_tokens=1)
NOTATIONS: list[NotationName] = ["json", "compact"]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(toy_start())


@pytest.fixture(scope="module")
def replay(tokenizer: Any) -> MaskReplay:
    return MaskReplay(tokenizer, VOCABULARY, [tokenizer.eos_token_id])


def sampling(notation: NotationName) -> Sampling:
    return Sampling(grammar=answer_grammar(notation, "sgg"))


def answer(tokenizer: Any, notation: NotationName, index: int = 0) -> Completion:
    graph = toy_scene(0, index, heldout=False)
    text = answer_text(graph, RELATIVE_1000, width=SIDE, height=SIDE, notation=notation)
    return completion([*tokenizer.encode(text), tokenizer.eos_token_id])


@pytest.mark.parametrize("notation", NOTATIONS)
def test_each_token_of_an_answer_is_allowed_and_most_others_are_not(
    tokenizer: Any, replay: MaskReplay, notation: NotationName
) -> None:
    written = answer(tokenizer, notation)
    masks = replay.masks(sampling(notation), written)
    table, index = allowed_tokens(masks, VOCABULARY)
    assert len({id(mask) for mask in masks}) == len(table), "equal masks are one object"
    rows = table[index]
    assert rows.shape == (len(written.token_ids), VOCABULARY)
    assert rows[torch.arange(len(index)), torch.tensor(written.token_ids)].all()
    assert rows.float().mean() < 0.5
    ends = rows[:, tokenizer.eos_token_id].tolist()
    assert (ends[-1], sum(ends)) == (True, 1), "the end is allowed at the end alone"
    assert len(table) < len(index) / 2, "few masks are distinct"


@pytest.mark.parametrize("notation", NOTATIONS)
def test_tokens_of_another_grammar_are_refused(
    tokenizer: Any, replay: MaskReplay, notation: NotationName
) -> None:
    asked = sampling(notation)
    other = answer(tokenizer, "json" if notation == "compact" else "compact")
    with pytest.raises(InvalidInputError, match=r"token [01] of .* does not fit the grammar"):
        replay.masks(asked, other)
    written = answer(tokenizer, notation)
    cut = {"token_ids": written.token_ids[:20], "finish_reason": "length"}
    assert len(replay.masks(asked, written.model_copy(update=cut))) == 20
    for update in (cut | {"finish_reason": "stop"}, {"finish_reason": "length"}):
        with pytest.raises(InvalidInputError, match="other stop tokens"):
            replay.masks(asked, written.model_copy(update=update))
    again = {"token_ids": [*written.token_ids, tokenizer.eos_token_id]}
    with pytest.raises(InvalidInputError, match="does not fit the grammar"):
        replay.masks(asked, written.model_copy(update=again))


def test_every_stop_token_ends_a_text(tokenizer: Any) -> None:
    stops = [tokenizer.eos_token_id, 7]
    (*_, last) = MaskReplay(tokenizer, VOCABULARY, stops).masks(
        sampling("json"), answer(tokenizer, "json")
    )
    table, _ = allowed_tokens([last], VOCABULARY)
    assert table[0].nonzero().flatten().tolist() == sorted(stops)


def test_a_micro_batch_has_the_mask_of_each_of_its_tokens(
    tokenizer: Any, replay: MaskReplay
) -> None:
    asked = sampling("compact")
    group = constrained(asked, [answer(tokenizer, "compact", i) for i in range(3)])
    prepared = prepare_group(group, [1.0] * 3, IMAGE, count_up, image_token_id=7, replay=replay)
    rows = [PackedRow(group=0, completions=(2, 0), length=1)]
    batch = micro_batch(rows, {0: prepared}, VOCABULARY).to(torch.device("cpu"))
    assert isinstance(batch.allowed, AllowedTokens)
    targets = batch.targets.flatten()[batch.slot]
    table, index = batch.allowed
    assert len(index) == len(targets)
    assert table[index, targets].all()


def test_what_the_sampler_kept_needs_no_replay(tokenizer: Any) -> None:
    answers = [completion([5, 6, 7]), completion([8])]
    sets = [[[5, 1], [6, 2], [7, 3]], [[8, 4]]]
    everything = [np.ones((len(one), 2), dtype=bool) for one in sets]
    everything[0][1] = [True, False]
    answers = [
        one.model_copy(update={"kept_tokens": pack_kept(np.array(ids), mask)})
        for one, ids, mask in zip(answers, sets, everything, strict=True)
    ]
    prepared = prepare_group(
        train_group([9, 7, 8], answers), [1.0] * 2, IMAGE, count_up, image_token_id=7
    )
    rows = [PackedRow(group=0, completions=(1, 0), length=1)]
    batch = micro_batch(rows, {0: prepared}).to(torch.device("cpu"))
    assert isinstance(batch.allowed, KeptTokens)
    assert [set(row.tolist()) for row in batch.allowed.ids] == [{8, 4}, {5, 1}, {6}, {7, 3}]
    assert batch.targets.flatten()[batch.slot].tolist() == [8, 5, 6, 7]


def constrained(asked: Sampling, completions: list[Completion]) -> TrainGroup:
    prompt = PromptGroup.model_validate(
        {
            "group_id": "g0",
            "incarnation": 1,
            "epoch": 0,
            "index": 0,
            "messages": [{"role": "user", "content": [{"type": "image"}]}],
            "images": [{"sha256": "0" * 64, "num_bytes": 1}],
            "sampling": asked.model_copy(update={"accept_renormalised": True}),
        }
    )
    return train_group([9, 7, 8], completions).model_copy(update={"prompt": prompt})


def count_up(**inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    length = inputs["input_ids"].shape[1]
    return torch.arange(length).expand(3, 1, length), torch.zeros(1)
