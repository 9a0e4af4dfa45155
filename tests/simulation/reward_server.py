"""The reward service as a simulated process: its answers are a function of the texts."""

import zlib
from typing import TYPE_CHECKING

from services.errors import SggError, TooLargeError, UnavailableError
from services.schemas.rewards import (
    GroupError,
    Matched,
    Reward,
    RewardGroup,
    RewardRequest,
    RewardResponse,
    ScoredGroup,
)
from tests.simulation.loop import Process

if TYPE_CHECKING:
    from tests.simulation.world import World


class SimReward:
    """A host with the service, which is started again when it ends."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self.fault: str | None = None
        self.start()

    def start(self) -> None:
        """Begin a process."""
        self.host = Process("reward")
        self._world.network.listening["reward"] = self.host

    def kill(self) -> None:
        """-9."""
        self._world.ended(self.host)
        self._world.again(self.start, self.host)

    async def score(self, request: RewardRequest) -> RewardResponse:
        """Rewards of every completion, or one of the errors that the service may give."""
        match self.fault:
            case "too_large" if len(request.groups) > 1:
                raise TooLargeError("the body is over 4000000 bytes; send less at a time")
            case "busy":
                raise UnavailableError("all workers are busy")
            case "broken" if self._world.rng.random() < 0.5:
                raise SggError("the service failed; its log has the reason")
        groups = [self._scored(group) for group in request.groups]
        return RewardResponse(rubric="balanced", rubric_version="1", groups=groups)

    def _scored(self, group: RewardGroup) -> ScoredGroup:
        if self.fault == "partly" and self._world.rng.random() < 0.5:
            error = GroupError(detail="a worker died", retryable=True)
            return ScoredGroup(group_id=group.group_id, rewards=[], error=error)
        return ScoredGroup(group_id=group.group_id, rewards=[_reward(t) for t in group.completions])


def _reward(text: str) -> Reward:
    total = zlib.crc32(text.encode()) % 1000 / 1000
    return Reward(
        total=total,
        status="ok",
        breakdown={"f1": total},
        matched=Matched(objects=0, relationships=0),
    )
