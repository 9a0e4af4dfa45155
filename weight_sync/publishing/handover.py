"""From the training thread, which gathers a version's tensors, to the thread that sends them."""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, Full, Queue

from torch import Tensor

from services.errors import UnavailableError

_LOOK_S = 0.5
_Item = tuple[str, Tensor]


@dataclass(frozen=True, slots=True)
class _End:
    """Nothing comes after this."""

    error: BaseException | None = None


class Handover:
    """A short queue of tensors between two threads; a failure on either side ends both.

    The training thread calls `fill`. The sending one iterates, once, and calls `leave` when it
    takes no more, whether it has got all or has failed.

    Args:
        size: Tensors that wait at most: on a GPU they are beside the model. One more is at
            either end.
        stop_asked: Whether the run is to stop. Asked while the sender, whose disk may be full,
            takes nothing.
    """

    def __init__(self, size: int = 2, stop_asked: Callable[[], bool] = lambda: False) -> None:
        self._queue: Queue[_Item | _End] = Queue(size)
        self._stop_asked = stop_asked
        self._left = threading.Event()

    def fill(self, weights: Iterable[_Item]) -> None:
        """Hand over all tensors, waiting for the sender.

        Where the sender has left, the rest is dropped but gathered all the same: gathering is a
        collective, in which the other ranks would wait for this one.
        """
        error: BaseException | None = None
        try:
            for item in weights:
                self._put(item)
        except BaseException as raised:
            error = raised
            raise
        finally:
            self._put(_End(error))

    def __iter__(self) -> Iterator[_Item]:
        """The tensors, as they come; the training thread's exception where it failed."""
        while not isinstance(item := self._queue.get(), _End):
            yield item
        if item.error is not None:
            raise item.error

    def leave(self) -> None:
        """Take no more; a filling thread that waits goes on."""
        self._left.set()
        with suppress(Empty):
            while True:
                self._queue.get_nowait()

    def _put(self, item: _Item | _End) -> None:
        # What is put between `leave`'s two steps finds room: there is one thread that puts.
        while not self._left.is_set():
            try:
                self._queue.put(item, timeout=_LOOK_S)
            except Full:
                if self._stop_asked():
                    self.leave()
                    self._queue.put(_End(UnavailableError("the version was given up")))
            else:
                return
