"""How many requests may be open over HTTP, and what happens when a client goes away."""

from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import TypeVar

from starlette.requests import Request

from services.errors import ClientGoneError, UnavailableError
from services.waiting import racing

T = TypeVar("T")

MAX_REQUESTS = 256
"""Asked for over HTTP at the same time; more are refused with 503."""


class OpenRequests:
    """Counts the requests that are being sampled, and refuses more."""

    def __init__(self, most: int = MAX_REQUESTS) -> None:
        self._most = most
        self._taken = 0

    @contextmanager
    def place(self, count: int = 1) -> Iterator[None]:
        """One of the places, or several, until the end of the block.

        Raises:
            UnavailableError: So many are not free.
        """
        if self._taken + count > self._most:
            raise UnavailableError(f"{self._taken} requests are in flight; try again later")
        self._taken += count
        try:
            yield
        finally:
            self._taken -= count


async def while_connected(request: Request, work: Coroutine[None, None, T]) -> T:
    """Work for a client, cancelled when it goes away. Its body must have been read.

    Raises:
        ClientGoneError: It went away.
    """
    async with racing(work, _disconnect(request)) as (working, _):
        if not working.done():
            raise ClientGoneError("the client left before its answer")
        answer: T = working.result()
        return answer


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
