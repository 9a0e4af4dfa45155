"""Both services of a run behind one object."""

import inspect
from dataclasses import dataclass, field, fields
from functools import cached_property, wraps
from typing import Any, Self, TypeVar

from services.errors import InvalidInputError
from services.http.clients.base import check_access
from services.http.clients.reward import RewardClient
from services.http.clients.rollout import RolloutClient
from services.http.clients.sync import SyncRewardClient, SyncRolloutClient
from services.settings import SecuritySettings

T = TypeVar("T")


def _refuses_other_names(cls: type[T]) -> type[T]:
    """The class, which says with an InvalidInputError what it can be made with."""
    make, signature = cls.__init__, inspect.signature(cls)

    @wraps(make)
    def init(self: object, *args: Any, **kwargs: Any) -> None:
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            names, name = ", ".join(signature.parameters), type(self).__name__
            raise InvalidInputError(
                f"{name}: {error}; it takes {names}, each by its name (help(sgg_rl.{name}))"
            ) from None
        make(self, *args, **kwargs)

    cls.__init__ = init  # type: ignore[method-assign]
    return cls


@_refuses_other_names
@dataclass(kw_only=True)
class _Addresses:
    """Where the services are."""

    rollout_url: str | None = None
    """`http://host:port` of a rollout server."""
    reward_url: str | None = None
    """The reward service's."""
    token: str | None = field(default=None, repr=False)
    """The run's data token, where it has one."""
    timeout_s: float = 60.0
    """Longest wait for one answer, all attempts together."""
    registered: SecuritySettings | None = field(default=None, repr=False)
    """Set where `rollout_url` stood in Redis: the server must then prove that it is the run's."""

    def __post_init__(self) -> None:
        """Raises: InvalidInputError: No request could be sent with these."""
        for url in filter(None, (self.rollout_url, self.reward_url)):
            check_access(url, self.token, self.timeout_s)

    def __getstate__(self) -> dict[str, Any]:
        """Without connections: a copy, also of another process, makes its own."""
        return {one.name: getattr(self, one.name) for one in fields(self)}

    def _reward(self) -> RewardClient:
        url = _given(self.reward_url, "reward_url")
        return RewardClient(url, token=self.token, timeout_s=self.timeout_s)

    def _rollout(self) -> RolloutClient:
        return RolloutClient(
            _given(self.rollout_url, "rollout_url"),
            token=self.token,
            timeout_s=self.timeout_s,
            registered=self.registered,
        )


class Client(_Addresses):
    """Asks the services of a run, and waits for each answer.

    It works anywhere, also in a notebook, whose own event loop runs.

    Example:
        >>> client = sgg_rl.Client(
        ...     rollout_url="http://127.0.0.1:8200", reward_url="http://127.0.0.1:8100"
        ... )
        >>> client.rollout.policy().state
        'ready'
        >>> "triplet_f1" in client.reward.rubrics().terms
        True
        >>> sample = sgg_rl.load_dataset("toy/heldout.parquet")[0]
        >>> sgg_rl.score("no graph", sample, client=client)[0].status
        'no_answer'
        >>> client.close()
    """

    @cached_property
    def rollout(self) -> SyncRolloutClient:
        """The rollout server: `rollouts`, `policy`."""
        return SyncRolloutClient(self._rollout())

    @cached_property
    def reward(self) -> SyncRewardClient:
        """The reward service: `score`, `rubrics`."""
        return SyncRewardClient(self._reward())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connections; without it they end with the process."""
        for client in (vars(self).get("rollout"), vars(self).get("reward")):
            if client is not None:
                client.close()


class AsyncClient(_Addresses):
    """The same for code that awaits.

    Example:
        >>> async def state() -> str:
        ...     async with sgg_rl.AsyncClient(rollout_url="http://127.0.0.1:8200") as client:
        ...         return (await client.rollout.policy()).state
        >>> asyncio.run(state())
        'ready'
    """

    @cached_property
    def rollout(self) -> RolloutClient:
        """The rollout server: `rollouts`, `policy`, and weights for who has the admin token."""
        return self._rollout()

    @cached_property
    def reward(self) -> RewardClient:
        """The reward service: `score`, `rubrics`."""
        return self._reward()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End the connections."""
        for client in (vars(self).get("rollout"), vars(self).get("reward")):
            if client is not None:
                await client.aclose()


def _given(url: str | None, name: str) -> str:
    if not url:
        raise InvalidInputError(f'this client has no such service: give {name}="http://host:port"')
    return url
