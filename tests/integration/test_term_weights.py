"""What a rubric's terms weigh, as the reward service says it."""

from pathlib import Path

import pytest

from services.errors import SettingsError, UnavailableError
from services.http.clients.reward import RewardClient
from services.schemas.rewards import RewardRequest
from tests.reward_process import REQUEST, TOKEN, running
from trainer.collection.advantages import term_weights


async def test_weights_make_the_totals_of_the_terms(tmp_path: Path) -> None:
    with running(tmp_path / "log") as (url, _):
        async with RewardClient(url, token=TOKEN) as client:
            request = RewardRequest.model_validate(REQUEST)
            weights = await term_weights(request.rubric, client)
            for reward in (await client.score(request)).groups[0].rewards:
                total = sum(weights[name] * value for name, value in reward.breakdown.items())
                assert reward.total == pytest.approx(total)
            with pytest.raises(SettingsError, match=r"reward\.rubric 'nobody'"):
                await term_weights("nobody", client)
    async with RewardClient(url, token=TOKEN, timeout_s=0.5) as client:
        with pytest.raises(UnavailableError):
            await term_weights("r1-soft", client)
        assert await term_weights({"terms": {"edge": 2.0}}, client) == {"edge": 2.0}
        with pytest.raises(SettingsError, match="has no terms"):
            await term_weights({"name": "mine"}, client)
