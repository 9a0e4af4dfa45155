from hypothesis import given
from hypothesis import strategies as st

from trainer.collection.cursor import Cursor


def test_restart_hands_out_what_was_not_finished() -> None:
    cursor = Cursor()
    assert [next(cursor) for _ in range(6)] == [0, 1, 2, 3, 4, 5]
    for position in (0, 3, 1):
        cursor.finish(position)
    again = Cursor(cursor.state)
    assert [next(again) for _ in range(4)] == [2, 4, 5, 6]


@given(st.permutations(range(30)), st.integers(0, 30))
def test_every_position_is_finished_once_over_a_restart(order: list[int], cut: int) -> None:
    cursor = Cursor()
    for position in order[:cut]:
        cursor.finish(position)
    again = Cursor(cursor.state)
    rest = [next(again) for _ in range(30 - cut)]
    assert sorted(rest + order[:cut]) == list(range(30))
