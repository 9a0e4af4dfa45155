"""From the elements of a completion's text to its tokens."""

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

from services.errors import InvalidInputError
from services.models.token_text import token_pieces
from services.schemas.rewards import Credit
from services.schemas.rollouts import Completion


def token_advantages(
    completion: Completion, credit: Credit, advantages: Sequence[float], tokenizer: Any
) -> list[float]:
    """The advantage of each of L tokens: that of the place at which it was written.

    An element is complete once the tokens before have all of its characters; a token that begins in
    an element and ends in the next is still of the first.

    Args:
        completion: As it was sampled.
        credit: Its elements.
        advantages: [K + 1] of its places.
        tokenizer: The policy's, a `tokenizers.Tokenizer`.

    Raises:
        InvalidInputError: The text is not what this tokenizer makes of the tokens.
    """
    ends = [end for _, end in credit.spans]
    if not ends:
        return [advantages[0]] * len(completion.token_ids)
    known = known_characters(completion.token_ids, completion.text, tokenizer)
    return [advantages[bisect_right(ends, count)] for count in known]


def known_characters(token_ids: Sequence[int], text: str, tokenizer: Any) -> list[int]:
    """[L] how many characters of the text the tokens before each one give, without parts of one."""
    known: list[int] = []
    at = 0
    for piece in token_pieces(tokenizer, token_ids):
        known.append(at)
        if not text.startswith(piece, at):
            raise InvalidInputError(
                f"token {len(known) - 1} of a completion is {piece!r} for this trainer, and its "
                f"text goes on with {text[at : at + len(piece)]!r}: the rollout server has another "
                "tokenizer"
            )
        at += len(piece)
    return known
