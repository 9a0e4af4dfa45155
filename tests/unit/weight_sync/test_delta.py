"""Deltas: the same bits come back, and nothing else than a delta is applied."""

import zlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from services.errors import InvalidInputError
from weight_sync.delta import Bits, TensorDelta, apply, encode

UINTS = st.sampled_from([np.uint16, np.uint32])


def applied(base: Bits, delta: TensorDelta) -> Bits:
    copy = base.copy()
    apply(copy, delta)
    return copy


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Bits, Bits]:
    """Any bits: NaNs with payloads, both zeros and infinities are among them."""
    dtype = np.dtype(draw(UINTS))
    base = draw(arrays.arrays(dtype, st.integers(0, 600)))
    changed = draw(arrays.arrays(bool, base.shape))
    other = draw(arrays.arrays(dtype, base.shape))
    return base, np.where(changed, other, base)


@given(pairs())
def test_the_same_bits_come_back(pair: tuple[Bits, Bits]) -> None:
    base, new = pair
    delta = encode(base, new)
    assert delta.num_changed == np.count_nonzero(base != new)
    np.testing.assert_array_equal(applied(base, delta), new)


@given(
    places=st.sets(st.integers(0, 3000), max_size=20),
    num_more=st.integers(1, 600),
    dtype=UINTS,
)
def test_changes_that_lie_far_apart(places: set[int], num_more: int, dtype: Any) -> None:
    """A distance of more than 254 elements takes several bytes."""
    base = np.arange(max(places, default=0) + num_more).astype(dtype)
    new = base.copy()
    new[list(places)] ^= 0x8000
    np.testing.assert_array_equal(applied(base, encode(base, new)), new)


def test_a_step_to_a_neighbour_takes_little() -> None:
    """2 % of the elements of bfloat16: under 1.3 bytes for each, where place and value take 6."""
    rng = np.random.default_rng(0)
    base = (rng.normal(size=100_000).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    moved = rng.random(len(base)) < 0.02
    new = np.where(moved, base + rng.choice([1, -1], len(base)), base).astype(np.uint16)
    delta = encode(base, new)
    assert delta.num_bytes < 1.3 * delta.num_changed


BASE = np.arange(1000, dtype=np.uint16)
GOOD = encode(BASE, np.where(BASE % 400 == 7, BASE + 1, BASE).astype(np.uint16))


def deflated(*values: int) -> bytes:
    return zlib.compress(bytes(values))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_changed": 1001}, "changes 1001 of 1000"),
        ({"num_changed": -1}, "changes -1 of 1000"),
        ({"num_changed": 2}, "distances do not fit"),
        ({"distances": b"plain"}, "distances are not deflated"),
        ({"distances": GOOD.distances[:-1]}, "distances are cut short"),
        ({"distances": GOOD.distances + b"x"}, "distances are cut short"),
        ({"distances": zlib.compress(bytes(10**6))}, "distances are cut short, or more"),
        ({"distances": deflated(7, 255, 1)}, "distances do not fit"),
        ({"distances": deflated(7, 1, 1, 255)}, "distances do not fit"),
        ({"distances": deflated(255, 255, 255, 250, 1, 1)}, "distances do not fit"),
        ({"differences": deflated(2, 2, 2)}, "differences are not one for each"),
        ({"differences": zlib.compress(bytes(10**6))}, "differences are cut short, or more"),
    ],
)
def test_what_is_no_delta_of_the_tensor_leaves_it_alone(
    change: dict[str, Any], message: str
) -> None:
    base = BASE.copy()
    with pytest.raises(InvalidInputError, match=message):
        apply(base, replace(GOOD, **change))
    np.testing.assert_array_equal(base, BASE)
    apply(base, GOOD)
    assert np.flatnonzero(base != BASE).tolist() == [7, 407, 807]
