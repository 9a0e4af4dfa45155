"""Which groups of the data order are done: all that open work is derived from."""

from collections.abc import Iterator

from pydantic import Field

from services.schemas.common import Message


class CursorState(Message):
    """Positions under `low` are all done; of those above, only the ones in `ahead`.

    Example: `{"low": 40, "ahead": [42, 43]}` (41 and 40 are still open)
    """

    low: int = 0
    ahead: list[int] = Field(default_factory=list)


class Cursor:
    """Hands out positions 0, 1, 2, … in order and remembers which are finished, in whatever order.

    A position is a place in the endless sequence of epochs; `scene_data.sampler` maps it to (epoch,
    row).
    """

    def __init__(self, state: CursorState | None = None) -> None:
        state = state or CursorState()
        self._low = state.low
        self._ahead = set(state.ahead)
        self._next = state.low

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        """The next position that is not finished."""
        while self._next in self._ahead:
            self._next += 1
        self._next += 1
        return self._next - 1

    def finish(self, position: int) -> None:
        """A step used this position, or it is dead."""
        self._ahead.add(position)
        while self._low in self._ahead:
            self._ahead.remove(self._low)
            self._low += 1

    @property
    def state(self) -> CursorState:
        """What a checkpoint keeps. Unfinished positions are handed out again after a restart."""
        return CursorState(low=self._low, ahead=sorted(self._ahead))
