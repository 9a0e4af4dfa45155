"""Deltas: the same bits come back, and nothing else than a delta is applied."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from services.errors import InvalidInputError
from weight_sync.delta import encoding
from weight_sync.delta.encoding import Bits, TensorDelta, advance, apply, check

UINTS = st.sampled_from([np.uint16, np.uint32])


def assert_leads(base: Bits, new: Bits) -> TensorDelta:
    """There and back again."""
    moved = base.copy()
    delta = advance(moved, new)
    np.testing.assert_array_equal(moved, new)
    check(len(base), delta)
    copy = base.copy()
    before = apply(copy, delta)
    np.testing.assert_array_equal(copy, new)
    apply(copy, before)
    np.testing.assert_array_equal(copy, base)
    return delta


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
    delta = assert_leads(base, new)
    assert len(delta.values) == np.count_nonzero(base != new)


@given(
    places=st.sets(st.integers(0, 3000), max_size=20),
    num_more=st.integers(1, 600),
    dtype=UINTS,
    size=st.integers(1, 700),
)
def test_changes_that_lie_far_apart(places: set[int], num_more: int, dtype: Any, size: int) -> None:
    """A gap of more than 254 elements takes several bytes; the size of slices changes nothing."""
    base = np.arange(max(places, default=0) + num_more).astype(dtype)
    new = base.copy()
    new[list(places)] ^= 0x8000
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoding, "_SLICE", size)
        patch.setattr(encoding, "_SOME", size)
        in_slices = assert_leads(base, new)
    assert in_slices.gaps.tobytes() == advance(base.copy(), new).gaps.tobytes()


def test_a_change_takes_three_bytes() -> None:
    """2 % of the elements of bfloat16: about one byte for the place, and two for the value."""
    rng = np.random.default_rng(0)
    base = rng.integers(0, 2**16, 1_000_000, np.uint16)
    new = np.where(rng.random(len(base)) < 0.02, base + 1, base).astype(np.uint16)
    delta = assert_leads(base, new)
    assert delta.num_bytes < 3.02 * len(delta.values)


GOOD = advance(np.zeros(1000, np.uint16), (np.arange(1000) % 400 == 7).astype(np.uint16))


@pytest.mark.parametrize(
    ("gaps", "num_values", "message"),
    [
        (GOOD.gaps.tolist(), 4, "4 values for 3 positions"),
        (GOOD.gaps.tolist()[:-1], 3, "3 values for 2 positions"),
        ([7, 255], 1, "lead out of the tensor"),
        ([255, 255, 255, 234, 0], 2, "lead out of the tensor"),
        ([255] * 4, 0, "lead out of the tensor"),
    ],
)
def test_what_is_no_delta_of_the_tensor(gaps: list[int], num_values: int, message: str) -> None:
    check(1000, GOOD)
    check(1000, TensorDelta(np.array([255, 255, 255, 233, 0], np.uint8), np.ones(2, np.uint16)))
    delta = TensorDelta(np.array(gaps, np.uint8), np.ones(num_values, np.uint16))
    with pytest.raises(InvalidInputError, match=message):
        check(1000, delta)
