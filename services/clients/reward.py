"""Client of the reward service."""

from services.clients.base import ServiceClient
from services.errors import EngineError
from services.schemas.rewards import RewardRequest, RewardResponse


class RewardClient(ServiceClient):
    """Typed `POST /v1/rewards`.

    Example: `response = await RewardClient("http://127.0.0.1:8100").score(request)`
    """

    async def score(self, request: RewardRequest) -> RewardResponse:
        """Rewards of every completion, groups and completions in the order of the request.

        Raises:
            UnavailableError: The service is not reachable; never turned into a reward.
            InvalidInputError: The request is wrong; the message names the path in it.
            UnauthorizedError: No token, or not the service's.
            TooLargeError: Send fewer groups at a time.
            EngineError: The answer does not fit the request.
        """
        response = await self.post("/v1/rewards", request, RewardResponse)
        sent = [(g.group_id, len(g.completions)) for g in request.groups]
        if [(g.group_id, len(g.rewards)) for g in response.groups] != sent:
            raise EngineError(f"{self.url} answered for other groups than it was asked to score")
        return response
