"""What `sgg-rl plan` predicts, against the real loop at the same rates.

It compares times, so it has a target of its own: `make check-plan`, on a machine that does nothing
else. Its rates are measured in the same runs, and nearly all of their time is sleep.
"""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.plan.real_loop import TOLERANCE, Seen, run_all, services


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> list[Seen]:
    folder: Path = tmp_path_factory.mktemp("plan")
    with services(folder, redis_url) as settings:
        return run_all(settings)


def wrong(seen: Seen, **changes: int) -> dict[str, float]:
    """What the simulation says too differently."""
    apart = seen.predicted(**changes).differences(seen.numbers)
    return {name: value for name, value in apart.items() if value > TOLERANCE}


def test_the_simulation_predicts_the_real_loop(runs: list[Seen]) -> None:
    assert {str(seen.regime): apart for seen in runs if (apart := wrong(seen))} == {}


def test_a_simulation_that_ignores_the_lag_bound_is_found_out(runs: list[Seen]) -> None:
    for seen in runs:
        unbounded = wrong(seen, max_policy_lag=seen.shape.max_policy_lag + 2)
        assert "lags" in unbounded, seen.regime
    paces = [wrong(seen, max_policy_lag=2) for seen in runs if not seen.shape.max_policy_lag]
    assert all("steps_per_hour" in pace for pace in paces)


def test_a_simulation_of_other_servers_is_found_out(runs: list[Seen]) -> None:
    balanced = next(s for s in runs if str(s.regime) == "balanced, lag 0")
    rates = replace(balanced.rates, tokens_per_s=balanced.rates.tokens_per_s / 2)
    assert "steps_per_hour" in wrong(replace(balanced, rates=rates))
