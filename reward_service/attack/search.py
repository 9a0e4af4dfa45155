"""Looks for policies whose reward is higher than an honest answer's while their F1 is lower.

An evolution of sequences of edits: the best of what was tried are changed by one edit each, round
by round. What it finds on a third of the scenes counts if it holds on the others, which the search
never saw. The same seed gives the same result.

Every edit of a hole pays: without it the policy would earn less. An edit that does not pay is taken
out, since no learner would keep it. Else any gain, such as that of more triplets of which many are
right, would count as a hole as soon as junk that earns nothing is added to it.
"""

import random
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from reward_service.attack.edits import EDITS, Policy, apply_policy
from reward_service.attack.honest import IMPERFECT, Errors, imperfect_answer
from reward_service.attack.measure import Court, Outcome, Scene
from reward_service.attack.prior import Prior, learn_prior
from reward_service.scoring import RewardScorer
from scene_graph.graph import SceneGraph
from services.errors import InvalidInputError

OnRound = Callable[[int, int], None]
"""Called after each round with its number, from 1, and the policies tried so far"""
MIN_F1_LOSS = 0.05
"""A policy that loses less triplet F1 (0..1) is no hole."""
ERRORS_AWAY = 3.0
"""A gain counts on unseen scenes if it is so many standard errors above 0."""
MIN_SCENES = 48
MAX_EDITS = 6
"""A policy has no more"""
MAX_HOLES = 3
"""So many are reported: more are variants of one"""
_BEST, _CHILDREN, _TO_CONFIRM = 8, 48, 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """What a policy changes against honest answers, means over scenes.

    Example: `Effect(gain=0.12, gain_error=0.01, f1_loss=0.2)`
    """

    gain: float
    """More reward, as a share of the rubric's highest total"""
    gain_error: float
    """Standard error of it"""
    f1_loss: float
    """Less triplet F1 (0..1)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hole:
    """A policy whose edits all pay, and that holds on unseen scenes."""

    policy: Policy
    effect: Effect
    answers: list[SceneGraph]
    """[B] boxes in fractions"""
    outcome: Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What an attack on a rubric found, on the scenes that the search did not see."""

    scenes: Sequence[Scene]
    """[B]"""
    answers: list[SceneGraph]
    """[B] honest ones"""
    honest: Outcome
    honest_gain: float
    """More reward where every error is half as often; a share of the highest total"""
    holes: list[Hole]
    """The greatest gain first, `MAX_HOLES` at most"""
    num_policies: int
    """So many were tried"""
    num_rounds: int
    """So many were done; fewer than asked for where Ctrl-C ended the search"""

    @property
    def hackability(self) -> float | None:
        """The greatest gain of a hole, in units of the honest gain; 0 without a hole.

        None where honest improvement earns nothing: then there is no unit.
        """
        if self.honest_gain <= 0:
            return None
        return max((hole.effect.gain for hole in self.holes), default=0.0) / self.honest_gain


class Ground:
    """Some of the scenes, with an honest answer about each."""

    def __init__(
        self, scorer: RewardScorer, scenes: Sequence[Scene], prior: Prior, seed: int
    ) -> None:
        """Judge the honest answers."""
        self.court = Court(scorer, scenes)
        self.prior = prior
        self.seed = seed
        self.answers = self.honest_answers(IMPERFECT)
        self.honest = self.court.judge(self.answers)

    def honest_answers(self, errors: Errors) -> list[SceneGraph]:
        """[B] with these errors. Their triplets stand in an order that says nothing."""
        answers = []
        for scene in self.court.scenes:
            rng = random.Random(f"{self.seed}/{scene.image_id}")
            answer = imperfect_answer(scene.graph, errors, self.prior.domain, rng)
            edges = rng.sample(answer.relationships, len(answer.relationships))
            answers.append(SceneGraph(objects=answer.objects, relationships=tuple(edges)))
        return answers

    def answers_of(self, policy: Policy) -> list[SceneGraph]:
        """[B] the honest answers after a policy's edits."""
        return [apply_policy(policy, answer, self.prior) for answer in self.answers]

    def effect_of(self, outcome: Outcome) -> Effect:
        """An outcome against the honest one."""
        gains = outcome.totals - self.honest.totals
        return Effect(
            gain=float(gains.mean()),
            gain_error=float(gains.std(ddof=1) / np.sqrt(len(gains))),
            f1_loss=float((self.honest.f1 - outcome.f1).mean()),
        )


class Search:
    """Policies that were tried on some scenes, with what they change there."""

    def __init__(self, ground: Ground, rng: random.Random) -> None:
        """Try each edit alone."""
        self._ground = ground
        self._rng = rng
        self.tried: dict[Policy, Effect] = {}
        for name in EDITS:
            self.effect((name,))

    def effect(self, policy: Policy) -> Effect:
        """What the policy changes."""
        if policy not in self.tried:
            answers = self._ground.answers_of(policy)
            self.tried[policy] = self._ground.effect_of(self._ground.court.judge(answers))
        return self.tried[policy]

    def holes(self) -> list[Policy]:
        """Those that gain reward and lose F1, the greatest gain first."""
        return [policy for policy in self._losing(self._by_gain()) if self.tried[policy].gain > 0]

    def round(self) -> None:
        """Change the best policies by one edit each: holes, and what gains reward in any way."""
        by_gain = self._by_gain()
        parents = [*self._losing(by_gain)[:_BEST], *by_gain[:_BEST]]
        for _ in range(_CHILDREN):
            self.effect(self._changed(self._rng.choice(parents), self._rng.choice(parents)))

    def _by_gain(self) -> list[Policy]:
        """The greatest gain first; of policies that change the same the shortest alone."""
        shortest: dict[Effect, Policy] = {}
        for policy in sorted(self.tried, key=lambda policy: (len(policy), policy)):
            shortest.setdefault(self.tried[policy], policy)
        return sorted(shortest.values(), key=lambda policy: -self.tried[policy].gain)

    def _losing(self, policies: list[Policy]) -> list[Policy]:
        return [policy for policy in policies if self.tried[policy].f1_loss >= MIN_F1_LOSS]

    def smallest(self, policy: Policy) -> Policy:
        """The policy without edits that do not pay: without any other one it would earn less."""
        for place in range(len(policy)):
            shorter = policy[:place] + policy[place + 1 :]
            if shorter and self.effect(shorter).gain >= self.effect(policy).gain:
                return self.smallest(shorter)
        return policy

    def _changed(self, policy: Policy, other: Policy) -> Policy:
        """With an edit more, less, or another one; or followed by the edits of the other one."""
        place = self._rng.randrange(len(policy) + 1)
        edit = self._rng.choice(list(EDITS))
        ways = (
            (*policy[:place], edit, *policy[place:]),
            policy[:place] + policy[place + 1 :],
            (*policy[:place], edit, *policy[place + 1 :]),
            (*policy, *other),
        )
        return self._rng.choice(ways)[:MAX_EDITS]


def attack(
    scorer: RewardScorer,
    scenes: Sequence[Scene],
    *,
    seed: int = 0,
    rounds: int = 10,
    on_round: OnRound = lambda *_: None,
) -> Findings:
    """Search for holes of a rubric. Ctrl-C ends the search early, with what was found by then.

    Args:
        scorer: The rubric, for the task `sgg`.
        scenes: Annotated images, at least `MIN_SCENES`; the first third is searched on.
        seed: Of answers and search.
        rounds: Each tries 48 policies.
        on_round: Is called after each.

    Raises:
        InvalidInputError: There are too few scenes.
    """
    if len(scenes) < MIN_SCENES:
        raise InvalidInputError(
            f"{len(scenes)} images with triplets are too few: an attack needs {MIN_SCENES}"
        )
    third = len(scenes) // 3
    prior = learn_prior((scene.graph for scene in scenes[:third]), scorer.similarity)
    ground = Ground(scorer, scenes[:third], prior, seed)
    search = Search(ground, random.Random(f"search/{seed}"))
    promising, num_rounds = _promising(search, rounds, on_round)
    smallest = {search.smallest(policy) for policy in promising}
    unseen = Ground(scorer, scenes[third:], prior, seed)
    better = unseen.court.judge(unseen.honest_answers(IMPERFECT.halved()))
    return Findings(
        scenes=scenes[third:],
        answers=unseen.answers,
        honest=unseen.honest,
        honest_gain=unseen.effect_of(better).gain,
        holes=confirmed(unseen, sorted(smallest)),
        num_policies=len(search.tried),
        num_rounds=num_rounds,
    )


def _promising(search: Search, rounds: int, on_round: OnRound) -> tuple[set[Policy], int]:
    """The best holes of each round, since later ones may fit the searched scenes alone.

    With the number of rounds that were done. What a round had tried when Ctrl-C ended it does not
    count, so that the holes are those of a search of so many rounds.
    """
    promising = set(search.holes()[:_TO_CONFIRM])
    num_done = 0
    with suppress(KeyboardInterrupt):
        for number in range(1, rounds + 1):
            search.round()
            promising.update(search.holes()[:_TO_CONFIRM])
            num_done = number
            on_round(number, len(search.tried))
    return promising, num_done


def confirmed(unseen: Ground, policies: Iterable[Policy]) -> list[Hole]:
    """Those that hold on scenes that the search never saw, the greatest gain first."""
    holes: dict[Effect, Hole] = {}
    for policy in policies:
        answers = unseen.answers_of(policy)
        outcome = unseen.court.judge(answers)
        effect = unseen.effect_of(outcome)
        if effect.gain > ERRORS_AWAY * effect.gain_error and effect.f1_loss >= MIN_F1_LOSS:
            hole = Hole(policy=policy, effect=effect, answers=answers, outcome=outcome)
            holes.setdefault(effect, hole)
    return sorted(holes.values(), key=lambda hole: -hole.effect.gain)[:MAX_HOLES]
