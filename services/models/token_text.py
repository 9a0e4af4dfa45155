"""Which part of a text each of its tokens is."""

from collections.abc import Iterator, Sequence
from typing import Any


def token_pieces(tokenizer: Any, token_ids: Sequence[int]) -> Iterator[str]:
    """The characters that are there once a token is, and were not before.

    Example: of `man`, `.1` and the token that ends it they are `man`, `.1` and nothing. A character
    of several tokens belongs to the last of them.

    Args:
        tokenizer: A `tokenizers.Tokenizer`; its special tokens are no text.
        token_ids: [L]
    """
    from tokenizers.decoders import DecodeStream

    stream = DecodeStream(skip_special_tokens=True)
    for token in token_ids:
        yield stream.step(tokenizer, token) or ""


def token_ends(tokenizer: Any, token_ids: Sequence[int], text: str) -> list[int]:
    """[L] characters of a text up to the end of each token.

    Args:
        tokenizer: As `token_pieces`.
        token_ids: [L]
        text: Of all of them, or the beginning of it where a stop string was cut off.
    """
    ends, end = [], 0
    for piece in token_pieces(tokenizer, token_ids):
        end = min(end + len(piece), len(text))
        ends.append(end)
    return ends
