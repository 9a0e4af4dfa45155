"""What a token was drawn from, on its way from sampler to trainer."""

import base64
import zlib

import numpy as np
import pytest

from services.errors import InvalidInputError
from services.models.kept_tokens import WIDTH, pack_kept, unpack_kept


def random_sets(num_tokens: int, vocabulary: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    ids = np.array([rng.choice(vocabulary, WIDTH, replace=False) for _ in range(num_tokens)])
    kept = np.arange(WIDTH) < rng.integers(1, WIDTH + 1, num_tokens)[:, None]
    return ids, kept


def test_sets_of_all_sizes_come_back() -> None:
    ids, kept = random_sets(300, 151_936)
    kept[0], kept[1] = True, np.arange(WIDTH) == 0
    found = unpack_kept(pack_kept(ids, kept), 300)
    assert found.shape == (300, WIDTH)
    for row, given, mask in zip(found, ids, kept, strict=True):
        assert set(row) == set(given[mask])
        assert list(row[: mask.sum()]) == list(given[mask])


def test_a_set_of_20_takes_fewer_letters_than_its_numbers() -> None:
    ids, kept = random_sets(1000, 151_936)
    kept[:] = np.arange(WIDTH) < 20
    numbers = sum(len(str(one)) + 1 for one in ids[kept])
    assert len(pack_kept(ids, kept)) < 0.6 * numbers


def packed(content: bytes) -> str:
    return base64.b64encode(zlib.compress(content)).decode()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no base64", "cannot be read"),
        ("kein Schlüssel", "cannot be read"),
        (base64.b64encode(b"no zlib").decode(), "cannot be read"),
        (packed(b"\1\1"), "is not of 2 tokens"),
        (packed(bytes([1, 2]) + bytes(8)), "is not of 2 tokens"),
        (packed(bytes([0, 1]) + bytes(4)), "1 to 24 for each"),
        (packed(bytes([WIDTH + 1, 1]) + bytes(4 * (WIDTH + 2))), "1 to 24 for each"),
        (packed(bytes(100_000_000)), "1 to 24 for each"),
    ],
)
def test_what_is_no_sets_of_that_many_tokens_is_refused(text: str, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        unpack_kept(text, 2)
