"""Which tokens a sampler drew from, as an answer carries it to the trainer.

With `top_k` a token comes from a few of the vocabulary's. A trainer cannot find them again: with
its own rounding, or with newer weights, others are among the likeliest, and a token that was
sampled may not be. So the sampler says which they were: at 20 tokens from a vocabulary of 150,000
at most 61 bytes for each token of an answer, where a list of numbers has 125.
"""

import base64
import zlib

import numpy as np
from numpy.typing import NDArray

from services.errors import InvalidInputError
from services.schemas.common import MAX_KEPT_TOKENS

TIES = 4
"""More than `top_k` are kept where they are exactly as likely as the last of these: 3 at most, so
that a fourth place, without a probability, shows that there are no others."""
WIDTH = MAX_KEPT_TOKENS + TIES

Ids = NDArray[np.int64]


def pack_kept(ids: Ids, kept: NDArray[np.bool_]) -> str:
    """The kept tokens of a completion's L tokens, as text.

    Args:
        ids: [L, N]
        kept: [L, N] which of them are; at least one in each row, `WIDTH` at most.
    """
    counts = kept.sum(1).astype(np.uint8)
    # Bytes of one place together: those of high places are few, and mostly 0.
    planes = ids[kept].astype("<u4").view(np.uint8).reshape(-1, 4).T
    return base64.b64encode(zlib.compress(counts.tobytes() + planes.tobytes(), 1)).decode()


def unpack_kept(text: str, num_tokens: int) -> Ids:
    """[L, WIDTH] the kept tokens of each; the rest of a row repeats its first.

    Args:
        text: From `pack_kept`.
        num_tokens: L, of the completion.

    Raises:
        InvalidInputError: It is not of that many tokens.
    """
    most = num_tokens * (1 + 4 * WIDTH)
    try:
        found = zlib.decompressobj().decompress(base64.b64decode(text, validate=True), most + 1)
    except (ValueError, zlib.error) as error:
        raise InvalidInputError(f"kept_tokens cannot be read: {error}") from error
    counts = np.frombuffer(found[:num_tokens], dtype=np.uint8).astype(np.int64)
    planes = np.frombuffer(found[num_tokens:], dtype=np.uint8)
    fits = len(counts) == num_tokens and len(planes) == 4 * counts.sum()
    if not fits or counts.min(initial=1) < 1 or counts.max(initial=1) > WIDTH:
        raise InvalidInputError(f"kept_tokens is not of {num_tokens} tokens, 1 to {WIDTH} for each")
    ids = np.ascontiguousarray(planes.reshape(4, -1).T).view("<u4")[:, 0].astype(np.int64)
    starts = counts.cumsum() - counts
    place = np.arange(WIDTH)
    rows: Ids = ids[starts[:, None] + np.where(place < counts[:, None], place, 0)]
    return rows
