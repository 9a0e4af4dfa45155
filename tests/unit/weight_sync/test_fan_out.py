"""Who gives a version to whom."""

import asyncio
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weight_sync.fan_out import MOST_GIVEN, FanOut, num_rounds

TRAINER = None


class Network:
    """Moves a version in one unit of time; some servers cannot give it, and some not take it."""

    def __init__(
        self, mute: frozenset[int] = frozenset(), deaf: frozenset[int] = frozenset()
    ) -> None:
        self.mute, self.deaf = mute, deaf
        self.gave: Counter[int | None] = Counter()
        self.have: set[int] = set()
        self.busy: set[int | None] = set()
        self.rounds: Counter[int | None] = Counter()
        """In which each has last got it or given it."""

    async def give(self, giver: int | None, to: int) -> bool:
        assert giver is TRAINER or giver in self.have
        assert giver is TRAINER or giver not in self.busy, "one after the other"
        assert to not in self.have
        self.busy.add(giver)
        await asyncio.sleep(0)
        self.busy.discard(giver)
        works = giver not in self.mute and to not in self.deaf
        if works:
            self.gave[giver] += 1
            self.have.add(to)
            self.rounds[giver] += 1
            self.rounds[to] = self.rounds[giver]
        return works

    async def spread(self, num_servers: int) -> list[bool]:
        fan_out = FanOut(self.give)
        async with asyncio.timeout(10):
            return await asyncio.gather(*(fan_out.reach(i) for i in range(num_servers)))


@pytest.mark.parametrize("num_servers", [1, 2, 3, 7, 64, 200])
async def test_the_trainer_sends_once_and_each_server_twice_at_most(num_servers: int) -> None:
    network = Network()
    assert await network.spread(num_servers) == [True] * num_servers
    assert max(network.rounds.values()) == num_rounds(num_servers)
    assert network.gave.pop(TRAINER) == 1
    assert sum(network.gave.values()) == num_servers - 1
    assert max(network.gave.values(), default=0) <= MOST_GIVEN


@given(
    num_servers=st.integers(1, 30),
    mute=st.frozensets(st.integers(0, 29)),
    deaf=st.frozensets(st.integers(0, 29)),
)
def test_servers_that_fail_cost_nobody_else_the_version(
    num_servers: int, mute: frozenset[int], deaf: frozenset[int]
) -> None:
    network = Network(mute, deaf)
    reached = asyncio.run(network.spread(num_servers))
    assert reached == [i not in deaf for i in range(num_servers)]
    assert all(n <= MOST_GIVEN for giver, n in network.gave.items() if giver is not TRAINER)


def test_rounds_grow_with_the_logarithm() -> None:
    numbers = (1, 2, 3, 4, 5, 7, 8, 64, 1000)
    assert [num_rounds(number) for number in numbers] == [1, 2, 3, 3, 4, 4, 5, 9, 15]


async def test_a_giver_that_fails_is_replaced_and_gives_no_more() -> None:
    network = Network(mute=frozenset({0}))
    assert await network.spread(12) == [True] * 12
    assert network.gave[TRAINER] == 2
    assert network.gave[0] == 0


async def test_a_server_that_nobody_can_give_it_does_not_stop_its_givers() -> None:
    network = Network(deaf=frozenset({1, 2}))
    assert sum(await network.spread(12)) == 10
    assert network.gave[TRAINER] == 1


async def test_late_servers_get_it_from_those_that_have_it() -> None:
    network = Network()
    fan_out = FanOut(network.give)
    for server in range(10):
        assert await fan_out.reach(server)
    assert network.gave[TRAINER] == 1


async def test_one_that_gets_it_again_does_not_get_it_from_itself() -> None:
    network = Network()
    fan_out = FanOut(network.give)
    for server in (0, 0, 1, 1, 0):
        network.have.discard(server)
        assert await fan_out.reach(server)
    assert network.gave == {TRAINER: 2, 0: 2, 1: 1}


async def test_servers_that_do_not_reach_each_other_get_it_from_the_trainer_all_at_once() -> None:
    everybody = frozenset(range(20))
    network = Network(mute=everybody)
    at_once = 0

    async def give(giver: int | None, to: int) -> bool:
        nonlocal at_once
        given_it = await network.give(giver, to)
        at_once = max(at_once, num_waiting())
        return given_it

    def num_waiting() -> int:
        return fan_out._num_under_way

    fan_out = FanOut(give)
    assert all(await asyncio.gather(*(fan_out.reach(i) for i in everybody)))
    assert network.gave == {TRAINER: 20}
    assert at_once > 10


async def test_one_that_is_given_up_leaves_the_turn_to_others() -> None:
    begun = asyncio.Event()

    async def give(giver: int | None, to: int) -> bool:
        begun.set()
        if to == 0:
            await asyncio.Event().wait()
        return True

    fan_out = FanOut(give)
    first = asyncio.create_task(fan_out.reach(0))
    await begun.wait()
    second = asyncio.create_task(fan_out.reach(1))
    first.cancel()
    assert await asyncio.wait_for(second, 10)
