"""Where in an answer's text its tokens end."""

from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from services.models.token_text import token_ends

TOKENIZER = Tokenizer.from_file("assets/toy-start/tokenizer.json")
END: int = TOKENIZER.encode("<|im_end|>", add_special_tokens=False).ids[0]


@given(text=st.text(max_size=40))
def test_the_text_up_to_a_tokens_end_is_that_of_the_tokens_up_to_it(text: str) -> None:
    ids = [*TOKENIZER.encode(text, add_special_tokens=False).ids, END]
    text = TOKENIZER.decode(ids)
    ends = token_ends(TOKENIZER, ids, text)
    assert len(ends) == len(ids)
    assert ends == sorted(ends)
    assert ends[-1] == len(text)
    for number, end in enumerate(ends, start=1):
        begun = TOKENIZER.decode(ids[:number])
        assert text[:end] == begun.rstrip("\N{REPLACEMENT CHARACTER}") or text[:end] == begun


@given(ids=st.lists(st.integers(0, TOKENIZER.get_vocab_size() - 1), max_size=30))
def test_bytes_that_are_no_text_have_ends_too(ids: list[int]) -> None:
    text = TOKENIZER.decode(ids)
    ends = token_ends(TOKENIZER, ids, text)
    assert len(ends) == len(ids)
    assert ends == sorted(ends)
    assert max(ends, default=0) <= len(text)


def test_a_text_that_a_stop_string_has_cut_ends_its_tokens() -> None:
    ids = TOKENIZER.encode("a man on a horse", add_special_tokens=False).ids
    assert token_ends(TOKENIZER, ids, "a man")[-1] == 5
