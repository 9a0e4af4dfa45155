"""Asks the reward service about sampled groups.

A service that is away, slow or failing is waited for; a group that it cannot score is dead, alone:

| what fails                | what is done                                                         |
|---------------------------|----------------------------------------------------------------------|
| a request of many groups  | it is halved: they may be too many, or one of them wrong             |
| one group, refused by     | it has no rewards                                                    |
| 422 or 413                |                                                                      |
| one group, otherwise      | it is asked about again, beside the others; it has no rewards once   |
|                           | it has failed for half of `trainer.wait_timeout_s`, while a group    |
|                           | that had rewards gets them again each time                           |
| every request, for        | the run ends                                                         |
| `trainer.wait_timeout_s`  |                                                                      |
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from services.errors import (
    InvalidInputError,
    SettingsError,
    SggError,
    TooLargeError,
    UnauthorizedError,
    UnavailableError,
    WaitTimeoutError,
)
from services.http.clients.reward import RewardClient
from services.schemas.rewards import GroupError, Reward, RewardGroup, RewardRequest
from services.schemas.rollouts import RolloutGroup
from services.settings import Settings
from services.waiting import Patience
from trainer.collection.group_pool import GroupSource

logger = logging.getLogger(__name__)

Sampled = tuple[RolloutGroup, GroupSource]
"""A group with what it was asked about."""
RewardsOrError = list[Reward] | GroupError
"""A reward for each completion, or why there are none."""
MAX_GROUPS = 64
"""In one request."""


class GroupScoring:
    """Rewards of groups, or why a group has none. Make it on the event loop that uses it.

    Args:
        settings: The run's.
    """

    def __init__(self, settings: Settings) -> None:
        self._rubric = settings.reward.rubric
        self._data = settings.data
        self._by_element = settings.algorithm.credit == "element"
        self._wait_timeout_s = settings.trainer.wait_timeout_s
        self._client = RewardClient(
            settings.reward.url, token=settings.data_token, timeout_s=settings.reward.timeout_s
        )
        self._known_good: RewardGroup | None = None
        """Had rewards: where it gets none, no group is at fault."""
        self._suspects: dict[str, float | None] = {}
        """Groups that failed alone, by work id: since when it is their own fault, if it is."""
        # An answer's elements may be another graph than the answer, which is compared beside it.
        self._most_groups = MAX_GROUPS // 2 if self._by_element else MAX_GROUPS
        self.max_groups = self._most_groups
        """In the next request: fewer after one that was too large or too slow."""
        self._patience = Patience(self._wait_timeout_s, "nothing was scored for")

    @property
    def trouble(self) -> str:
        """The last failure, until a group is scored."""
        return self._patience.trouble

    async def score(
        self, groups: Sequence[Sampled]
    ) -> AsyncIterator[list[tuple[RolloutGroup, RewardsOrError]]]:
        """Score groups; each is yielded once, as soon as its request is answered.

        With a `GroupError` that is `retryable`, a group is to be given here again.

        Raises:
            WaitTimeoutError: Nothing was scored for `trainer.wait_timeout_s`.
            UnauthorizedError: The service wants another token.
        """
        alone = [sampled for sampled in groups if sampled[0].work_id in self._suspects]
        others = [sampled for sampled in groups if sampled[0].work_id not in self._suspects]
        batches = deque([others] if others else [])
        while batches:
            batch = batches.popleft()
            try:
                found = await self._ask(batch)
            except SggError as error:
                if len(batch) == 1:
                    alone += batch
                else:
                    await self._before_halving(len(batch), error)
                    half = len(batch) // 2
                    batches.extendleft((batch[half:], batch[:half]))
                continue
            answered = list(zip(batch, found, strict=True))
            alone += [sampled for sampled, each in answered if _may_pass(each)]
            yield [(group, each) for (group, _), each in answered if not _may_pass(each)]
        for sampled in alone:
            yield [(sampled[0], await self._ask_alone(sampled))]

    async def term_weights(self) -> dict[str, float]:
        """What each term of the run's rubric weighs in the total.

        Raises:
            UnavailableError: The service is away, slow, or fails: ask again.
            SettingsError: It has no rubric of this name, or the given one has no terms.
        """
        rubric = self._rubric
        terms = await self._listed_terms(rubric) if isinstance(rubric, str) else rubric.get("terms")
        if not isinstance(terms, Mapping) or not terms:
            raise SettingsError(
                f"reward.rubric {rubric!r} has no terms to normalise: name one of `GET "
                f"/v1/rubrics` at {self._client.url}, give it in full, or set "
                "algorithm.normalise = 'total'"
            )
        return dict(terms)

    async def _listed_terms(self, name: str) -> Any:
        try:
            listed = (await self._client.rubrics()).rubrics
        except SggError as error:
            if error.retryable or type(error) is SggError:
                raise UnavailableError(error.message) from error
            raise
        return {r.rubric["name"]: r.rubric["terms"] for r in listed}.get(name)

    async def aclose(self) -> None:
        """Give back the connection."""
        await self._client.aclose()

    async def _ask(self, batch: Sequence[Sampled]) -> list[RewardsOrError]:
        """What one request says of each group; raises what it fails with."""
        # In a thread: claims and acknowledgements go on while the references are laid out.
        made = await asyncio.to_thread(lambda: [self._reward_group(*sampled) for sampled in batch])
        sent = [group for group in made if isinstance(group, RewardGroup)]
        scored = iter(await self._send(sent) if sent else [])
        return [next(scored) if isinstance(group, RewardGroup) else group for group in made]

    async def _send(self, groups: list[RewardGroup]) -> list[RewardsOrError]:
        request = RewardRequest(
            task=self._data.task, rubric=self._rubric, credit=self._by_element, groups=groups
        )
        scored = (await self._client.score(request)).groups
        found = [group.error or group.rewards for group in scored]
        if self._by_element:
            found = [_NO_CREDIT if _lacks_credit(each) else each for each in found]
        good = [group for group, each in zip(groups, found, strict=True) if isinstance(each, list)]
        if good:
            self._known_good = good[0]
            self._patience.succeeded()
            if len(groups) >= self.max_groups:
                self.max_groups = min(self.max_groups + 1, self._most_groups)
        return found

    def _reward_group(self, group: RolloutGroup, source: GroupSource) -> RewardGroup | GroupError:
        try:
            reference = source.reference
            return RewardGroup(
                group_id=group.group_id,
                image_size=reference.image_size,
                box_space=reference.box_space,
                reference=reference.graph,
                completions=[c.text for c in group.completions],
                require_thinking=self._data.thinking,
                notation=reference.notation,
                num_tokens=[len(c.token_ids) for c in group.completions],
            )
        except ValidationError as error:
            return GroupError(detail=str(error))

    async def _ask_alone(self, sampled: Sampled) -> RewardsOrError:
        work_id = sampled[0].work_id
        try:
            (found,) = await self._ask([sampled])
        except (InvalidInputError, TooLargeError) as error:
            found = GroupError(detail=error.message)
        except SggError as error:
            await self._endure(error)
            found = GroupError(detail=error.message, retryable=True)
        if isinstance(found, GroupError) and found.retryable:
            found = await self._suspect(work_id, found)
        else:
            self._suspects.pop(work_id, None)
        return found

    async def _suspect(self, work_id: str, error: GroupError) -> GroupError:
        """The error, which says no more `retryable` once it is the group's own fault."""
        since = self._suspects.setdefault(work_id, None)
        if not await self._is_well():
            return error
        now = time.monotonic()
        if since is None:
            logger.warning("group %s has no rewards: %s; trying again", work_id, error.detail)
            self._suspects[work_id] = now
        elif now - since > self._wait_timeout_s / 2:
            del self._suspects[work_id]
            return GroupError(detail=f"{error.detail} (others are scored)")
        return error

    async def _is_well(self) -> bool:
        """Wait until a group that had rewards gets them again; False where none ever had."""
        while self._known_good is not None:
            try:
                (found,) = await self._send([self._known_good])
            except SggError as error:
                await self._endure(error)
            else:
                if isinstance(found, list):
                    return True
                await self._endure(UnavailableError(found.detail))
        return False

    async def _before_halving(self, size: int, error: SggError) -> None:
        if isinstance(error, TooLargeError | WaitTimeoutError):
            self.max_groups = size // 2
        if not isinstance(error, InvalidInputError | TooLargeError):
            await self._endure(error)

    async def _endure(self, error: SggError) -> None:
        """Take note of a service that fails, and pause. Raises as `score`."""
        if isinstance(error, UnauthorizedError):
            raise error
        await self._patience.endure(error)


_NO_CREDIT = GroupError(
    detail="the reward service does not say what each element adds, which algorithm.credit needs: "
    "start it from this release"
)


def _lacks_credit(found: RewardsOrError) -> bool:
    return isinstance(found, list) and any(reward.credit is None for reward in found)


def _may_pass(found: RewardsOrError) -> bool:
    return isinstance(found, GroupError) and found.retryable
