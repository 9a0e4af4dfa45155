from dataclasses import replace

import pytest
import torch

from services.errors import InvalidInputError
from tests.train_groups import completion, train_group
from trainer.batches.batch import PreparedGroup, RowLayout, micro_batch, prepare_group
from trainer.batches.images import ImageFeatures
from trainer.batches.micro_batches import PackedRow

IMAGE = 7


def count_up(**inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A model without 2D positions."""
    length = inputs["input_ids"].shape[1]
    return torch.arange(length).expand(3, 1, length), torch.zeros(1)


def features(tokens: int) -> ImageFeatures:
    return ImageFeatures(
        pixels=torch.full((4 * tokens, 6), float(tokens)),
        grid=torch.tensor([1, 4, tokens]),
        num_tokens=tokens,
    )


def prepared(*lengths: int, tokens: int = 2) -> PreparedGroup:
    """A prompt `9 7 … 8` and completions whose token is 40 + length."""
    prompt = [9, *[IMAGE] * tokens, 8]
    group = train_group(prompt, [completion([40 + n] * n, -float(n)) for n in lengths])
    return prepare_group(
        group, [1 / n for n in lengths], features(tokens), count_up, image_token_id=IMAGE
    )


def test_a_row_is_a_prompt_and_its_completions() -> None:
    row = PackedRow(group=0, completions=(0, 1), length=10)
    batch = micro_batch([row], {0: prepared(2, 4)})
    assert batch.input_ids.tolist() == [[9, 7, 7, 8, 42, 42, 44, 44, 44, 44]]
    assert batch.layout == (RowLayout(4, (2, 4)),)
    assert batch.position_ids.tolist() == [[[0, 1, 2, 3, 4, 5, 4, 5, 6, 7]]] * 3
    assert batch.source.tolist() == [3, 4, 3, 6, 7, 8], "both begin where the prompt ends"


def test_completions_line_up_with_their_numbers() -> None:
    groups = {3: prepared(2, 4), 5: prepared(3, 1, tokens=1)}
    rows = [
        PackedRow(group=3, completions=(0, 1), length=10),
        PackedRow(group=5, completions=(1,), length=4),
    ]
    batch = micro_batch(rows, groups)
    assert batch.layout == (RowLayout(4, (2, 4)), RowLayout(3, (1,)))
    assert batch.input_ids[0, 10:].tolist() == [9, 7, 8, 41], "rows follow each other"
    assert batch.order == [(3, 0), (3, 1), (5, 1)]
    assert batch.targets.tolist() == [[42, 42, 0, 0], [44] * 4, [41, 0, 0, 0]]
    assert batch.loss_mask.sum(1).tolist() == [2, 4, 1]
    assert batch.rollout_logprobs[:, 0].tolist() == [-2, -4, -1]
    assert batch.token_weights.sum(1).tolist() == [1, 1, 1]
    assert batch.advantages.tolist() == [2, 4, 1]
    assert batch.source[-1] == 10 + 2, "the second row's prompt has three tokens"
    assert batch.targets.flatten()[batch.slot].tolist() == [42] * 2 + [44] * 4 + [41]
    assert batch.image_grid_thw.tolist() == [[1, 4, 2], [1, 4, 1]]
    assert batch.pixel_values[:, 0].tolist() == [2.0] * 8 + [1.0] * 4


def test_tokens_may_have_advantages_of_their_own() -> None:
    rows = [PackedRow(group=0, completions=(0, 1), length=10)]
    group = replace(prepared(2, 4), token_advantages=[[1.0, 2.0], [3.0, 4.0, 5.0, 6.0]])
    batch = micro_batch(rows, {0: group})
    assert batch.advantages.tolist() == [[1, 2, 0, 0], [3, 4, 5, 6]]


def test_prompt_that_does_not_fit_its_image_is_refused() -> None:
    group = train_group([9, IMAGE, 8], [completion([42])])
    with pytest.raises(InvalidInputError, match=r"group g0.*1 image tokens.*makes 2"):
        prepare_group(group, [1.0], features(2), count_up, image_token_id=IMAGE)
