"""What a rubric's terms weigh, as the reward service says it."""

from pathlib import Path
from typing import Any

import pytest

from services.errors import SettingsError, UnavailableError
from services.host.ports import free_port
from services.http.clients.reward import RewardClient
from services.schemas.rewards import RewardRequest
from services.settings import Settings
from tests.reward_process import REQUEST, TOKEN, running
from trainer.collection.group_scoring import GroupScoring


async def weights(
    url: str, rubric: str | dict[str, Any], timeout_s: float = 30.0
) -> dict[str, float]:
    reward = {"url": url, "rubric": rubric, "timeout_s": timeout_s}
    scoring = GroupScoring(
        Settings.model_validate(
            {"model": {"path": "none"}, "data": {"train": "none"}, "reward": reward}
        )
    )
    try:
        return await scoring.term_weights()
    finally:
        await scoring.aclose()


async def test_weights_make_the_totals_of_the_terms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SGG_DATA_TOKEN", TOKEN)
    with running(tmp_path / "log") as (url, _):
        async with RewardClient(url, token=TOKEN) as client:
            request = RewardRequest.model_validate(REQUEST)
            by_term = await weights(url, request.rubric)
            for reward in (await client.score(request)).groups[0].rewards:
                total = sum(by_term[name] * value for name, value in reward.breakdown.items())
                assert reward.total == pytest.approx(total)
            with pytest.raises(SettingsError, match=r"reward\.rubric 'nobody'"):
                await weights(url, "nobody")
    nowhere = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(UnavailableError):
        await weights(nowhere, "r1-soft", timeout_s=0.5)
    assert await weights(nowhere, {"terms": {"edge": 2.0}}) == {"edge": 2.0}
    with pytest.raises(SettingsError, match="has no terms"):
        await weights(nowhere, {"name": "mine"})
