"""Client of the reward service."""

from services.errors import EngineError
from services.http.clients.base import ServiceClient
from services.schemas.rewards import RewardGroup, RewardRequest, RewardResponse, ScoredGroup
from services.schemas.rubrics import RubricList


class RewardClient(ServiceClient):
    """Typed `POST /v1/rewards` and `GET /v1/rubrics`.

    Example: `response = await RewardClient("http://127.0.0.1:8100").score(request)`
    """

    async def score(self, request: RewardRequest) -> RewardResponse:
        """Rewards of every completion, groups and completions in the order of the request.

        A group that could not be scored has an `error` and no rewards; look at it before the
        rewards. Where no group could be scored, the error is raised.

        Raises:
            UnavailableError: The service is not reachable; never turned into a reward.
            InvalidInputError: The request is wrong; the message names the path in it.
            UnauthorizedError: No token, or not the service's.
            TooLargeError: Send fewer groups at a time.
            EngineError: The answer does not fit the request.
        """
        response = await self.post("/v1/rewards", request, RewardResponse)
        same_number = len(response.groups) == len(request.groups)
        if not same_number or not all(map(_fits, request.groups, response.groups)):
            raise EngineError(f"{self.url} answered for other groups than it was asked to score")
        return response

    async def rubrics(self) -> RubricList:
        """The rubrics that ship with the service, and every term that a rubric can weigh."""
        return await self.get("/v1/rubrics", RubricList)


def _fits(sent: RewardGroup, scored: ScoredGroup) -> bool:
    num_rewards = 0 if scored.error else len(sent.completions)
    return (scored.group_id, len(scored.rewards)) == (sent.group_id, num_rewards)
