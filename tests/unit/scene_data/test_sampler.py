import pytest
from hypothesis import given
from hypothesis import strategies as st

from scene_data.sampler import EpochSampler, group_id
from services.errors import InvalidInputError


def test_every_epoch_has_every_row_once_in_an_order_of_its_own() -> None:
    sampler = EpochSampler(50, seed=1)
    places = [sampler.at(position) for position in range(150)]
    epochs = [[row for epoch, row in places if epoch == wanted] for wanted in range(3)]
    assert all(sorted(rows) == list(range(50)) for rows in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


@given(st.integers(1, 40), st.integers(0, 2**31), st.lists(st.integers(0, 500), min_size=1))
def test_a_resumed_sampler_continues_the_uninterrupted_order(
    num_rows: int, seed: int, positions: list[int]
) -> None:
    uninterrupted = EpochSampler(num_rows, seed)
    order = [uninterrupted.at(position) for position in range(501)]
    resumed = EpochSampler(num_rows, seed)
    assert [resumed.at(position) for position in positions] == [order[p] for p in positions]


def test_another_seed_gives_another_order() -> None:
    first, second = (EpochSampler(100, seed) for seed in (1, 2))
    assert [first.at(i) for i in range(100)] != [second.at(i) for i in range(100)]


def test_no_rows_is_an_error() -> None:
    with pytest.raises(InvalidInputError, match="no rows"):
        EpochSampler(0, seed=1)


def test_group_ids_tell_run_epoch_and_row_apart() -> None:
    ids = {group_id(run, e, i) for run in ("a", "b") for e in (0, 1) for i in (0, 1, 11)}
    assert len(ids) == 12
    assert group_id("demo", 0, 17) == "demo-e0-r17"
