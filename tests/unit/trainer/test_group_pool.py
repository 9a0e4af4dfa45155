import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.errors import SggError
from services.schemas.common import ChatMessage, Sampling, TextPart
from services.schemas.groups import TrainGroup
from services.schemas.prompts import PromptGroup
from services.schemas.rewards import Matched, Reward
from services.schemas.rollouts import Completion, RolloutGroup, VersionSpan
from services.settings.training import AlgorithmSettings, TrainerSettings
from trainer.collection.group_pool import GroupPool
from trainer.types import Outcome

SIZE = 2


def make_pool(*, lag: int = 0, groups_per_step: int = 3, **more: int) -> GroupPool:
    dynamic = "max_replaced" in more
    algorithm = AlgorithmSettings(
        dynamic_sampling=dynamic, max_replaced=more.pop("max_replaced", 0)
    )
    trainer = TrainerSettings(
        groups_per_step=groups_per_step, group_size=SIZE, max_policy_lag=lag, **more
    )
    return GroupPool(trainer, algorithm)


def prompt(position: int, version: int = 0) -> PromptGroup:
    return PromptGroup(
        group_id=f"g{position}",
        incarnation=1,
        epoch=0,
        index=position,
        messages=[ChatMessage(role="user", content=[TextPart(text="?")])],
        images=[],
        sampling=Sampling(n=SIZE),
        min_policy_version=version,
    )


def scored(
    asked: PromptGroup, *, spread: bool = True, versions: tuple[int, int] = (0, 0)
) -> TrainGroup:
    completions = [
        Completion(
            text="",
            token_ids=[1],
            rollout_logprobs=[-1.0],
            finish_reason="stop",
            policy_versions=[VersionSpan(policy_version=version, start=0, end=1)],
        )
        for version in versions
    ]
    nothing = Matched(objects=0, relationships=0)
    totals = (0.0, 1.0) if spread else (1.0, 1.0)
    rewards = [Reward(total=t, status="ok", breakdown={"a": t}, matched=nothing) for t in totals]
    rollout = RolloutGroup(
        group_id=asked.group_id,
        attempt=asked.attempt,
        incarnation=1,
        server_id="s",
        prompt_token_ids=[1],
        completions=completions,
        sampling_s=0,
    )
    return TrainGroup(position=asked.index, index=asked.index, rollout=rollout, rewards=rewards)


def receive(pool: GroupPool, asked: PromptGroup) -> None:
    opened = pool.get(asked.work_id)
    assert opened is not None
    opened.received = True


def positions(groups: list[TrainGroup]) -> list[int]:
    return [group.position for group in groups]


def one_step(
    pool: GroupPool, start: int, flat: frozenset[int], shuffle: random.Random
) -> tuple[list[int], Outcome, int]:
    """Ask, and answer in a random order, until there is a batch; the next position with it."""
    position, asked = start, list[PromptGroup]()
    while True:
        while pool.has_room:
            asked.append(prompt(position))
            pool.add(position, asked[-1], None)
            position += 1
        answered = asked.pop(shuffle.randrange(len(asked)))
        pool.score(scored(answered, spread=answered.index not in flat))
        pool.replace_zero_variance()
        if (found := pool.take(0)) is not None:
            for group in found[0]:
                pool.close(group.rollout.work_id)
            return positions(found[0]), found[1], position


@given(st.frozensets(st.integers(0, 30)), st.randoms(use_true_random=False))
def test_what_a_synchronous_step_takes_does_not_depend_on_what_comes_first(
    flat: frozenset[int], shuffle: random.Random
) -> None:
    pool, start = make_pool(max_replaced=4), 0
    for _ in range(3):
        taken, outcome, end = one_step(pool, start, flat, shuffle)
        replaced = [p for p in range(start, end) if p in flat][:4]
        assert outcome.positions == replaced
        assert outcome.replaced == [f"g{p}" for p in replaced]
        assert [(u.state, u.position) for u in pool.unused] == [
            ("zero_variance", position) for position in replaced
        ]
        assert taken == [p for p in range(start, end) if p not in replaced]
        start = end


def test_groups_without_spread_stay_where_nothing_is_replaced() -> None:
    pool = make_pool()
    taken, outcome, end = one_step(pool, 0, frozenset(range(9)), random.Random(0))
    assert (taken, outcome.replaced, end) == ([0, 1, 2], [], 3)


def test_the_default_bound_of_replacements_is_three_steps_of_groups() -> None:
    pool = make_pool(max_replaced=0)
    taken, outcome, _ = one_step(pool, 0, frozenset(range(50)), random.Random(0))
    assert (len(outcome.replaced), taken) == (9, [9, 10, 11])


def test_with_a_lag_a_slow_group_keeps_nobody_waiting() -> None:
    pool = make_pool(lag=1, max_replaced=5)
    asked = [prompt(position) for position in range(6)]
    for one in asked:
        pool.add(one.index, one, None)
    for one in asked[2:]:
        receive(pool, one)
    assert not pool.has_room
    assert (pool.num_sampling, pool.num_scoring, pool.num_ready) == (2, 4, 0)
    pool.score(scored(asked[4], spread=False))
    assert pool.replace_zero_variance()
    assert pool.has_room
    for one in (asked[5], asked[2], asked[3]):
        pool.score(scored(one))
    found = pool.take(0)
    assert found is not None
    assert positions(found[0]) == [2, 3, 5]
    assert pool.take(0) is None
    assert (pool.num_sampling, pool.num_scoring, pool.num_ready) == (2, 0, 0)


@pytest.mark.parametrize(
    ("lag", "bound", "oldest_lag"), [(0, 0, 0), (1, 0, 2), (3, 0, 6), (1, 1, 1), (1, 5, 5)]
)
def test_a_group_at_the_edge_of_the_lag_is_used_and_one_beyond_is_not(
    lag: int, bound: int, oldest_lag: int
) -> None:
    """Its oldest token counts."""
    pool, version = make_pool(lag=lag, groups_per_step=2, max_token_lag=bound), 7
    for position, oldest in ((0, version - oldest_lag), (1, version - oldest_lag - 1)):
        pool.add(position, prompt(position), None)
        pool.score(scored(prompt(position), versions=(version, oldest)))
    (again,) = pool.reissue_stale(version)
    assert (again.group_id, again.attempt, again.min_policy_version) == ("g1", 1, version)
    assert pool.reissue_stale(version) == []
    pool.score(scored(again, versions=(version, version)))
    found = pool.take(0)
    assert found is not None
    assert positions(found[0]) == [0, 1]
    assert found[1].stale == ["g1"]
    (stale,) = pool.unused
    assert stale.state == "stale"
    assert stale.group is not None
    assert stale.group.oldest_policy_version == version - oldest_lag - 1, "the answers of before"
    assert found[1].positions == [], "it was trained on after all"


@pytest.mark.parametrize("lag", [1, 2])
def test_a_stale_group_is_asked_for_once_its_version_exists_and_is_used_then(lag: int) -> None:
    """While step 6 trains, a group comes back that step 7 cannot use: version 7 is not there."""
    pool = make_pool(lag=lag, groups_per_step=1, max_token_lag=lag)
    pool.policy_version = 6
    pool.add(0, prompt(0), None)
    pool.score(scored(prompt(0), versions=(6 - lag, 6 - lag)))
    (again,) = pool.reissue_stale(7)
    assert again.min_policy_version == 7
    assert (pool.unanswered(), pool.num_sampling) == ([], 0)
    pool.policy_version = 7
    assert pool.unanswered() == [again]
    for position in range(1, lag + 1):  # others are quicker, and used, until one has to wait
        pool.add(position, prompt(position), None)
        pool.score(scored(prompt(position), versions=(99, 99)))
    for step in range(7, 7 + lag):
        assert pool.take(step) is not None
    pool.add(9, prompt(9), None)
    pool.score(scored(prompt(9), versions=(99, 99)))
    assert pool.take(7 + lag) is None
    pool.score(scored(again, versions=(7, 7)))
    assert pool.reissue_stale(7 + lag) == []
    found = pool.take(7 + lag)
    assert found is not None
    assert positions(found[0]) == [0]


def test_a_group_that_dies_is_not_waited_for() -> None:
    pool = make_pool(lag=1, groups_per_step=1)
    for position in (0, 1):
        pool.add(position, prompt(position, version=6), None)
    pool.score(scored(prompt(1), versions=(7, 7)))
    assert pool.take(8) is None, "the last step that can use the other one"
    pool.bury(prompt(0).work_id, "poisoned")
    assert pool.take(8) is not None


def test_dead_groups_are_done_with_the_step_that_reports_them() -> None:
    pool = make_pool(max_dead_groups=2)
    pool.record_dead(0, "g0", 0, "no image")
    for position in (1, 2, 3):
        pool.add(position, prompt(position), None)
    answers = scored(prompt(2)).rollout
    pool.bury(prompt(2).work_id, "refused", answers)
    pool.add(4, prompt(4), None)
    for position in (4, 3, 1):
        pool.score(scored(prompt(position)))
    found = pool.take(0)
    assert found is not None
    assert positions(found[0]) == [1, 3, 4]
    assert (found[1].dead, found[1].positions) == (["g0", "g2"], [0, 2])
    unread, refused = pool.unused
    assert (unread.group, unread.reason) == (None, "no image")
    assert (refused.reason, refused.index) == ("refused", 2)
    assert refused.group is not None
    assert (refused.group.rollout, refused.group.rewards) == (answers, [])


def test_more_dead_groups_than_allowed_end_the_run() -> None:
    pool = make_pool(max_dead_groups=2)
    pool.record_dead(0, "g0", 0, "no image")
    pool.record_dead(1, "g1", 1, "no image")
    pool.record_dead(3, "g3", 3, "a bbox is not 4 numbers", bounded=False)
    with pytest.raises(SggError, match=r"3 groups died .*max_dead_groups \(2\).* g2: damaged"):
        pool.record_dead(2, "g2", 2, "damaged")


class Servers:
    """Answers in any order, and steps that are published before or after the next is taken.

    Args:
        pool: That asks.
        rng: Draws what is next.
        most_behind: Versions that an answer may be older than it was asked for.
    """

    def __init__(self, pool: GroupPool, rng: random.Random, most_behind: int = 0) -> None:
        self._pool, self._rng, self._most_behind = pool, rng, most_behind
        self._training: list[TrainGroup] = []
        self._next = 0
        self.stale: list[str] = []
        self.publish(0)

    def publish(self, version: int) -> None:
        """The step that trains is over; new groups are asked for."""
        for group in self._training:
            self._pool.close(group.rollout.work_id)
        self._training, self._pool.policy_version = [], version
        while self._pool.has_room:
            self._pool.add(self._next, prompt(self._next, version=version), None)
            self._next += 1

    def train(self, step: int) -> list[TrainGroup]:
        """Take the groups of a step, while the one before may still train."""
        if self._rng.random() < 0.5:
            self.publish(step)
        self._pool.reissue_stale(step)
        while (found := self._pool.take(step)) is None:
            if waiting := self._pool.unanswered():
                self._answer(self._rng.choice(waiting))
                self._pool.reissue_stale(step)
            else:
                assert self._training, "nobody samples, and nothing will change that"
                self.publish(step)
        self.publish(step)
        self._training = found[0]
        self.stale += found[1].stale
        return found[0]

    def _answer(self, asked: PromptGroup) -> None:
        receive(self._pool, asked)
        oldest = max(0, asked.min_policy_version - self._rng.randint(0, self._most_behind))
        self._pool.score(scored(asked, versions=(oldest, self._pool.policy_version)))


@given(st.randoms(use_true_random=True), st.integers(0, 3), st.integers(0, 4))
def test_no_token_is_ever_older_than_its_bound(rng: random.Random, lag: int, more: int) -> None:
    """Not even from servers that answer with older versions than they were asked for."""
    bound = lag + more if lag and more else 0
    pool = make_pool(lag=lag, groups_per_step=2, max_token_lag=bound)
    servers = Servers(pool, rng, most_behind=2)
    for step in range(8):
        for group in servers.train(step):
            assert step - group.oldest_policy_version <= (bound or 2 * lag)


@given(st.randoms(use_true_random=True), st.integers(1, 3))
def test_at_lag_one_nothing_is_sampled_in_vain_whatever_is_slow(
    rng: random.Random, bound: int
) -> None:
    servers = Servers(make_pool(lag=1, groups_per_step=2, max_token_lag=bound), rng)
    taken = positions([group for step in range(8) for group in servers.train(step)])
    assert servers.stale == []
    assert len(set(taken)) == 16
