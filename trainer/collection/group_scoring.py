"""Asks the reward service about sampled groups."""

from collections.abc import Sequence

from pydantic import ValidationError

from services.clients.reward import RewardClient
from services.errors import InvalidInputError
from services.schemas.rewards import Reward, RewardRequest
from services.schemas.rollouts import RolloutGroup
from services.settings import Settings
from trainer.collection.prompts import PromptSource
from trainer.collection.rewards import term_weights


class GroupScoring:
    """Rewards of groups, or why a group has none. Make it on the event loop that uses it.

    Args:
        settings: Of the run.
        prompts: Knows the references.
    """

    def __init__(self, settings: Settings, prompts: PromptSource) -> None:
        self._prompts = prompts
        self._rubric = settings.reward.rubric
        self._task = settings.data.task
        self._client = RewardClient(
            settings.reward.url, token=settings.data_token, timeout_s=settings.reward.timeout_s
        )

    async def score(self, groups: Sequence[tuple[RolloutGroup, int]]) -> list[list[Reward] | str]:
        """Score in one request; where that is refused, one by one, to find what is wrong.

        Args:
            groups: Each with its row of the dataset.

        Returns:
            For each group a reward for each completion, or why it cannot be scored.

        Raises:
            UnavailableError: The service is away: never a reward. Ask again.
        """
        try:
            request = RewardRequest(
                task=self._task,
                rubric=self._rubric,
                groups=[
                    self._prompts.reward_group(group.group_id, index, group.completions)
                    for group, index in groups
                ],
            )
            scored = (await self._client.score(request)).groups
        except (InvalidInputError, ValidationError) as error:
            if len(groups) == 1:
                return [f"it cannot be scored: {error}"]
            return [found for group in groups for found in await self.score([group])]
        return [
            f"it cannot be scored: {group.error.detail}" if group.error else group.rewards
            for group in scored
        ]

    async def term_weights(self) -> dict[str, float]:
        """What each term of the run's rubric weighs."""
        return await term_weights(self._rubric, self._client)

    async def aclose(self) -> None:
        """Give back the connection."""
        await self._client.aclose()
