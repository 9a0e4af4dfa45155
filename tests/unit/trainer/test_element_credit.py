"""Advantages of elements: by hand, against the whole answer's, and as a gradient that is known."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.element_credit import toy_gradients
from services.errors import InvalidInputError
from services.schemas.rewards import Credit
from services.settings.training import AlgorithmSettings
from tests.train_groups import completion
from trainer.algorithms.advantages import Scale, group_relative
from trainer.algorithms.element_credit import element_relative, reward_to_go, same_places
from trainer.batches.token_credit import known_characters, token_advantages


def doubles(*values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_reward_to_go_leaves_out_what_was_earned() -> None:
    """Format, 0.5, is earned at the end of the first; the second fails there and loses all."""
    totals, increments = doubles([3.5, 0.0]), doubles([[2.0, 1.0], [2.0, 0.0]])
    assert reward_to_go(totals, increments, 1.0).tolist() == [[[3.5, 1.5, 0.5], [0.0, -2.0, -2.0]]]
    assert reward_to_go(totals, increments, 0.5)[0, 0].tolist() == [0.5 + 2.5, 1.5, 0.5]


def test_the_same_place_is_as_many_objects_or_as_many_triplets() -> None:
    """The first has 1 object and 2 triplets, the second 3 objects and 1 triplet."""
    there = same_places(torch.tensor([[1, 3]]), torch.tensor([[3, 4]]), 5)[0]
    assert there[0, :4, 1].tolist() == [0, 1, 4, 4]
    assert there[1, :, 0].tolist() == [0, 1, 1, 1, 2]
    assert there[0, :4, 0].tolist() == [0, 1, 2, 3]


def test_advantages_are_relative_to_the_group_at_the_same_place() -> None:
    found = element_relative(
        doubles([3.0, 1.0]),
        doubles([[2.0, 1.0], [1.0, 0.0]]),
        torch.tensor([[1, 1]]),
        torch.tensor([[2, 1]]),
        scale="none",
        decay=1.0,
    )
    # Of the first: 3, 1 and 0 are to come; of the second 1, then 0, which is its last place.
    assert found.tolist() == [[[1.0, 0.5, 0.0], [-1.0, -0.5, 0.0]]]


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_without_elements_it_is_the_reward_of_the_answer(scale: Scale) -> None:
    totals = torch.rand(3, 4, dtype=torch.float64)
    none = torch.zeros(3, 4, dtype=torch.int64)
    found = element_relative(
        totals, torch.zeros(3, 4, 0).double(), none, none, scale=scale, decay=1.0
    )
    torch.testing.assert_close(found.squeeze(2), group_relative(totals, scale))


def test_a_group_of_equal_totals_keeps_what_its_elements_tell() -> None:
    found = element_relative(
        doubles([1.0, 1.0]),
        doubles([[1.0, 0.0], [0.0, 1.0]]),
        torch.tensor([[2, 2]]),
        torch.tensor([[2, 2]]),
        scale="group",
        decay=1.0,
    )
    assert found[0, :, 0].tolist() == [0, 0]
    assert found[0, 0, 1] < 0 < found[0, 1, 1]
    assert found.abs().max() < 2, "no small spread makes them large"


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_equal_answers_have_exact_zeros(scale: Scale) -> None:
    """Their sums are rounded: 0.1 + 0.2 + 0.7 and the mean of three are."""
    found = element_relative(
        doubles([1.1, 1.1, 1.1]),
        doubles([[0.1, 0.2, 0.7]] * 3),
        torch.tensor([[2, 2, 2]]),
        torch.tensor([[3, 3, 3]]),
        scale=scale,
        decay=0.9,
    )
    assert not found.any()


def test_the_gradient_is_unbiased_and_of_less_variance() -> None:
    """100,000 samples of a policy of eight elements, whose gradient is known."""
    whole, element = toy_gradients("answer"), toy_gradients("element")
    for found in (whole, element):
        deviations = (found.mean - found.exact).abs() / found.standard_error
        assert deviations.max() < 4, "of 24 parameters"
        assert deviations.square().mean() < 2
    assert whole.variance / element.variance > 1.3
    less = toy_gradients("element", decay=0.7)
    assert less.variance < element.variance
    assert ((less.mean - less.exact).abs() / less.standard_error).max() > 6, "and a bias"


def credit(*ends: int) -> Credit:
    spans = [(end - 1, end) for end in ends]
    return Credit(num_objects=len(ends), spans=spans, increments=[0.0] * len(ends))


class Tokenizer:
    """Bytes as tokens, but for one of two bytes."""

    def __init__(self) -> None:
        from tokenizers import Tokenizer as Backend
        from tokenizers import decoders, pre_tokenizers
        from tokenizers.models import BPE

        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        vocabulary = {letter: number for number, letter in enumerate(letters)}
        vocabulary["},"] = len(vocabulary)
        self.backend_tokenizer = Backend(BPE(vocabulary, [("}", ",")]))
        self.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        self.backend_tokenizer.decoder = decoders.ByteLevel()

    def encode(self, text: str) -> list[int]:
        return list(self.backend_tokenizer.encode(text).ids)


def test_a_token_belongs_to_the_element_in_which_it_begins() -> None:
    tokenizer = Tokenizer()
    text = "{a},{é}!"
    ids = tokenizer.encode(text)
    assert len(ids) == 8, "`},` is one token and `é` are two"
    made = completion(ids).model_copy(update={"text": text})
    found = token_advantages(made, credit(3, 7), [0.0, 1.0, 2.0], tokenizer.backend_tokenizer)
    assert found == [0, 0, 0, 1, 1, 1, 1, 2], "the comma came with the first element's brace"
    assert known_characters(ids, text, tokenizer.backend_tokenizer) == [0, 1, 2, 4, 5, 5, 6, 7]


@given(st.lists(st.integers(0, 256), max_size=40))
def test_bytes_that_are_no_text_are_followed_as_the_sampler_decodes_them(ids: list[int]) -> None:
    tokenizer = Tokenizer()
    text = tokenizer.backend_tokenizer.decode(ids)
    known = known_characters(ids, text, tokenizer.backend_tokenizer)
    assert (len(known), known) == (len(ids), sorted(known))
    assert all(count <= len(text) for count in known)


def test_a_text_of_another_tokenizer_is_refused() -> None:
    tokenizer = Tokenizer()
    made = completion(tokenizer.encode("{a}")).model_copy(update={"text": "{b}"})
    with pytest.raises(InvalidInputError, match=r"token 1 .* is 'a' .* goes on with 'b'"):
        token_advantages(made, credit(3), [0.0, 1.0], tokenizer.backend_tokenizer)


@pytest.mark.parametrize(
    ("algorithm", "message"),
    [
        ({"credit": "element", "loss": "gspo"}, "a ratio for each token"),
        ({"credit": "element", "normalise": "terms"}, "leave out normalise"),
        ({"credit_lambda": 0.9}, r"credit_lambda = 0\.9 needs credit"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(
    algorithm: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        AlgorithmSettings.model_validate(algorithm)
