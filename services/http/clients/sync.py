"""The clients for code that does not await: scripts, and notebooks, whose own event loop runs."""

import functools
import os
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar

from services.http.clients.base import ServiceClient
from services.http.clients.reward import RewardClient
from services.http.clients.rollout import RolloutClient
from services.http.loop_thread import LoopThread

C = TypeVar("C", bound=ServiceClient)
P = ParamSpec("P")
T = TypeVar("T")
_LOOP = LoopThread("clients")
"""All clients share it: a notebook makes many and closes few."""


def _start_anew() -> None:
    """A fork has none of its parent's threads; a client connects anew on the loop of a new one."""
    global _LOOP
    _LOOP = LoopThread("clients")


os.register_at_fork(after_in_child=_start_anew)


def run_here(work: Coroutine[Any, Any, T]) -> T:
    """Wait for a coroutine, whether or not an event loop runs in this thread.

    Ctrl-C ends the coroutine too.
    """
    future = _LOOP.start(work)
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


class SyncClient(Generic[C]):
    """One service, asked from any thread."""

    def __init__(self, client: C) -> None:
        """Args: client: Is asked through this one alone, since it belongs to one event loop."""
        self._client = client

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End its connections."""
        run_here(self._client.aclose())


def _waiting(
    method: Callable[Concatenate[C, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[SyncClient[C], P], T]:
    """The method of a client, as one that returns when the answer is there."""

    @functools.wraps(method)
    def ask(self: SyncClient[C], /, *args: P.args, **kwargs: P.kwargs) -> T:
        return run_here(method(self._client, *args, **kwargs))

    return ask


class SyncRewardClient(SyncClient[RewardClient]):
    """`RewardClient` without `await`."""

    score = _waiting(RewardClient.score)
    rubrics = _waiting(RewardClient.rubrics)


class SyncRolloutClient(SyncClient[RolloutClient]):
    """`RolloutClient` without `await`; weights are sent by trainers alone."""

    rollouts = _waiting(RolloutClient.rollouts)
    scene_graphs = _waiting(RolloutClient.scene_graphs)
    policy = _waiting(RolloutClient.policy)
