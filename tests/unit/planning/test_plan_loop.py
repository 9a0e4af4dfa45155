"""The simulated loop against what can be worked out by hand."""

import itertools
from dataclasses import replace

import pytest
import simpy
from simpy.events import ProcessGenerator

from planning.simulation.loop import Loop, Shape, fullest
from planning.simulation.rates import Rates, lognormal_lengths, seen_lengths
from planning.simulation.server import Group, SampledHere

RATES = Rates(
    tokens_per_s=100,
    fixed_s=3.0,
    export_s=0.25,
    stage_more_s=0.5,
    commit_s=0.125,
    lengths=seen_lengths([[50, 50]]),
)
SLOW = replace(RATES, tokens_per_s=10)
SHAPE = Shape(
    num_trainers=1,
    num_servers=2,
    groups_per_step=4,
    max_policy_lag=0,
    max_sequences=64,
    groups_in_flight=8,
    beside_training=False,
    checkpoint_every=1000,
)


def test_ranks_that_write_a_version_share_it_until_gathering_takes_longer() -> None:
    rates = replace(RATES, write_s=8.0)
    assert [rates.exported_s(writers) for writers in (1, 4, 64)] == [8.0, 2.0, 0.25]
    slow, fast = (
        Loop(replace(SHAPE, num_writers=writers), rates).run(4, warm_up=2) for writers in (1, 4)
    )
    assert slow.step_s - fast.step_s == pytest.approx(6.0)


def ends(*groups: tuple[float, Group], rates: Rates, most: int = 64) -> list[float]:
    """When each group ends that comes at its time, by position."""
    env, found = simpy.Environment(), dict[int, float]()

    def ended(group: Group) -> None:
        found[group.position] = env.now

    server = SampledHere(env, rates, most, ended)

    def take(at: float, group: Group) -> ProcessGenerator:
        yield env.timeout(at)
        server.take(group)

    for at, group in groups:
        env.process(take(at, group))
    env.run()
    return [found[position] for position in sorted(found)]


def test_sequences_share_the_curve() -> None:
    rates = replace(RATES, half_sequences=2)
    assert ends((0, Group(0, (50, 50))), rates=rates) == pytest.approx([50 * (2 + 2) / 100])
    # Alone at 100 / 3 tokens a second, together at 100 / 4 each.
    first, second = ends((0, Group(0, (100,))), (1, Group(1, (100,))), rates=rates)
    left = 100 - 100 / 3
    assert first == pytest.approx(1 + left / 25)
    assert second == pytest.approx(first + (100 - left) / (100 / 3))


def test_what_does_not_fit_waits_for_a_place() -> None:
    assert ends((0, Group(0, (10, 10, 10))), rates=SLOW, most=1) == pytest.approx([3.0])


def test_prompts_hold_everybody_up() -> None:
    rates = replace(SLOW, prompt_s=2.0)
    both = ends((0, Group(0, (10,))), (1, Group(1, (10,))), rates=rates)
    assert both == pytest.approx([6.0, 6.0])


def test_a_pause_keeps_what_is_running_and_prefills_it_again() -> None:
    env = simpy.Environment()
    rates = replace(SLOW, prefill_token_s=0.1)
    server = SampledHere(env, rates, 4, lambda group: None)

    def commit() -> ProcessGenerator:
        yield env.timeout(1.0)
        server.pause()
        yield env.timeout(3.0)
        server.resume(1)

    env.process(commit())
    server.take(Group(0, (20,)))
    env.run(until=server.group_ended)
    assert env.now == pytest.approx(1 + 3 + 10 * 0.1 + 1)
    assert server.busy_s == pytest.approx(1 + 10 * 0.1 + 1)


def test_a_synchronous_step_is_the_sum_of_its_parts() -> None:
    found = Loop(SHAPE, RATES).run(5, warm_up=2)
    sampling = 2 * 2 * 50 / 100  # two groups on each server
    assert found.step_s == pytest.approx(sampling + 3.0 + 0.25 + 2 * 0.5 + 0.125)
    assert found.trainer_idle == pytest.approx(sampling / found.step_s)
    assert found.sampler_idle == pytest.approx(1 - sampling / found.step_s)
    assert found.lags == {0: 1.0}


def test_with_a_lag_sampling_and_giving_weights_go_on_beside_the_step() -> None:
    shape = replace(SHAPE, max_policy_lag=1)
    beside = replace(shape, beside_training=True)
    waits = Loop(shape, RATES).run(6, warm_up=3)
    assert waits.step_s == pytest.approx(3.0 + 0.25 + 2 * 0.5 + 0.125)
    assert waits.trainer_idle == 0
    assert Loop(beside, RATES).run(6, warm_up=3).step_s == pytest.approx(3.0 + 0.25)


@pytest.mark.parametrize(
    ("lag", "servers", "train_s"), list(itertools.product((0, 1, 3), (1, 5), (0.1, 20.0)))
)
def test_nothing_is_trained_on_that_is_older_than_the_lag_allows(
    lag: int, servers: int, train_s: float
) -> None:
    shape = replace(SHAPE, max_policy_lag=lag, num_servers=servers, beside_training=lag > 0)
    lengths = lognormal_lengths(60, 1.0, max_tokens=300, group_size=3)
    rates = replace(RATES, fixed_s=train_s, export_s=0.0, lengths=lengths)
    loop, same = (Loop(shape, rates, seed=4) for _ in range(2))
    first, again = (each.run(30, warm_up=5) for each in (loop, same))
    assert max(first.lags) <= 2 * lag
    assert first.stale_per_step == 0, "the last step that can use a group waits for it"
    assert [step.lags.total() for step in loop.steps] == [4] * 35
    assert (first.step_s, first.lags) == (again.step_s, again.lags), "the same seed, the same run"
    if lag and servers == 1 and train_s < 1:
        assert first.trainer_idle > 0.8


def test_a_checkpoint_takes_its_time() -> None:
    rates = replace(RATES, checkpoint_s=20.0)
    plain = Loop(SHAPE, RATES).run(6, warm_up=2)
    kept = Loop(replace(SHAPE, checkpoint_every=2), rates).run(6, warm_up=2)
    # The next step's groups are sampled meanwhile.
    assert kept.step_s == pytest.approx(plain.step_s + (20.0 - 2.0) / 2)


def test_the_fullest_rank_is_as_full_as_it_must_be() -> None:
    groups = [Group(i, (tokens,)) for i, tokens in enumerate((90, 10, 50, 50))]
    assert fullest(groups, 2, prompt_tokens=5) == 110
    assert fullest(groups, 4, prompt_tokens=0) == 90
