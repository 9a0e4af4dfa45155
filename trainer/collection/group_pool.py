"""The open groups of a run, and which of them make the next batch. No IO, no clock.

What becomes of a position of the data order:

      add
       |
       v       `received`             score                 take              close
     asked ----------------> sampled -------> scored ----------------> taken -------> used
       ^ |                      |               | |
       | |  bury                |  bury         | |  replace_zero_variance
       | `----------------------+---> dead      | `-----------------------> replaced
       |                                        |
     waits for its version  <-------------------`  reissue_stale

A group is open from `add` until it is used, dead or replaced. Those three are ends: the position is
done with the step that trains, or whose ledger line names it.
"""

from dataclasses import dataclass

from pydantic import ValidationError

from scene_data.dataset import Sample
from scene_data.messages import reference_graph
from scene_graph.boxes import BoxSpace
from services.errors import SggError
from services.run_folder.records import GroupState
from services.schemas.groups import GroupReference, TrainGroup
from services.schemas.prompts import PromptGroup
from services.schemas.rewards import Notation, Reward
from services.schemas.rollouts import RolloutGroup
from services.settings.training import AlgorithmSettings, TrainerSettings
from trainer.collection.advantages import has_zero_variance
from trainer.types import Outcome, UnusedGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSource:
    """What a group's row of the dataset holds, read once."""

    sample: Sample
    box_space: BoxSpace
    """Name of the space in which the policy writes this image's boxes."""
    notation: Notation = "json"
    """What the policy is asked to write."""
    num_image_tokens: int | None
    """Visual tokens that the trainer makes of the image; None where nobody looked."""

    @property
    def reference_if_any(self) -> GroupReference | None:
        """The row's graph; None where the reward service would not take it."""
        try:
            return self.reference
        except ValidationError:
            return None

    @property
    def reference(self) -> GroupReference:
        """The row's graph, as the reward service gets it.

        Raises:
            ValidationError: It is more than the service takes.
        """
        sample = self.sample
        return GroupReference(
            image_size=(sample.width, sample.height),
            box_space=str(self.box_space),
            notation=self.notation,
            graph=reference_graph(sample),
        )


@dataclass(slots=True, kw_only=True)
class OpenGroup:
    """A group from the moment it is asked for until its step is published."""

    position: int
    prompt: PromptGroup
    source: GroupSource | None
    """None where nothing is sampled for it, as in a simulation."""
    received: bool = False
    scored: TrainGroup | None = None
    taken: bool = False
    """By a step that is not published yet."""

    def answered(self, answers: RolloutGroup, rewards: list[Reward]) -> TrainGroup:
        """The group with its answers, and the reference that they are held against."""
        return TrainGroup(
            position=self.position,
            index=self.prompt.index,
            prompt=self.prompt,
            rollout=answers,
            rewards=rewards,
            reference=self.source.reference_if_any if self.source else None,
        )


class GroupPool:
    """Open groups by work id.

    With `max_policy_lag = 0` positions are decided in order: a group counts once all open groups
    before it are scored. Which groups a step trains on, and which it replaces, is then a function
    of the rewards alone, not of what came first. With a lag they count as they come: a slow group
    keeps nobody waiting, until a step comes that is the last which can use it.

    Two bounds hold with a lag. At most (max_policy_lag + 1) * groups_per_step groups are open, so
    by Little's law the version that a group is asked with is on average at most `max_policy_lag`
    behind its step. And no token is more than `oldest_token_lag` behind. Prime-RL bounds both
    (`max_async_level`, `max_off_policy_steps`); AReaL bounds the first alone (arXiv 2505.24298,
    section 5.1). Each token's own log-probability of the sampler is in its ratio
    (`trainer.algorithms`), whatever its version.

    A group that is beyond the second bound all the same is asked for again when the version that
    the step trains is published: servers are asked for nothing that does not exist.

    Args:
        trainer: Bounds.
        algorithm: Whether groups of zero variance are replaced.
    """

    def __init__(self, trainer: TrainerSettings, algorithm: AlgorithmSettings) -> None:
        self._groups_per_step = trainer.groups_per_step
        self._limit = trainer.max_open_groups
        self._in_order = trainer.max_policy_lag == 0
        self._max_token_lag = trainer.oldest_token_lag
        self._max_dead = trainer.max_dead_groups or 4 * trainer.groups_per_step
        self._normalise = algorithm.normalise
        self._max_replaced = algorithm.max_replaced or 3 * trainer.groups_per_step
        if not algorithm.dynamic_sampling:
            self._max_replaced = 0
        self._open: dict[str, OpenGroup] = {}
        self._ready: dict[str, OpenGroup] = {}
        """Those that are scored and not taken."""
        self._outcome = Outcome()
        self._num_dead = 0
        """Since the last step, as far as `max_dead_groups` counts them."""
        self._unused: list[UnusedGroup] = []
        self.unused: list[UnusedGroup] = []
        """Those that the outcome of the last `take` names."""
        self.policy_version = 0
        """The newest that is published."""

    @property
    def has_room(self) -> bool:
        """Whether another group may be asked for."""
        return len(self._open) < self._limit

    @property
    def num_sampling(self) -> int:
        """Asked for, and not back from the rollout servers."""
        return len(self.unanswered())

    @property
    def num_scoring(self) -> int:
        """Sampled, and not back from the reward service."""
        return sum(group.received and group.scored is None for group in self._open.values())

    @property
    def num_ready(self) -> int:
        """Scored, and not taken."""
        return len(self._ready)

    def get(self, work_id: str) -> OpenGroup | None:
        """An open group."""
        return self._open.get(work_id)

    def unanswered(self) -> list[PromptGroup]:
        """Prompts that the rollout servers have, or should have."""
        return [
            group.prompt
            for group in self._open.values()
            if not group.received and group.prompt.min_policy_version <= self.policy_version
        ]

    def add(self, position: int, prompt: PromptGroup, source: GroupSource | None) -> None:
        """A group is asked for."""
        self._open[prompt.work_id] = OpenGroup(position=position, prompt=prompt, source=source)

    def score(self, group: TrainGroup) -> None:
        """A group is back from the reward service."""
        opened = self._ready[group.rollout.work_id] = self._open[group.rollout.work_id]
        opened.scored = group

    def bury(self, work_id: str, reason: str, answers: RolloutGroup | None = None) -> None:
        """An open group will never be trained on; see `record_dead`.

        Args:
            work_id: The group's.
            reason: Why.
            answers: What the rollout servers answered, for the run's records.
        """
        self._ready.pop(work_id, None)
        opened = self._open.pop(work_id)
        group = opened.scored or (opened.answered(answers, []) if answers else None)
        prompt = opened.prompt
        self.record_dead(opened.position, prompt.group_id, prompt.index, reason, group)

    def record_dead(
        self,
        position: int,
        group_id: str,
        index: int,
        reason: str,
        group: TrainGroup | None = None,
        *,
        bounded: bool = True,
    ) -> None:
        """Record a group that will never be trained on. Another takes its place.

        Args:
            position: The group's.
            group_id: The group's.
            index: Row of the dataset.
            reason: Why.
            group: The group itself, where answers came.
            bounded: Whether it counts for `trainer.max_dead_groups`. A row whose annotations are
                broken does not: only a small share of a dataset's are, or it would not be opened.

        Raises:
            SggError: Over `trainer.max_dead_groups` since the last step.
        """
        self._outcome.dead.append(group_id)
        self._outcome.positions.append(position)
        unused = UnusedGroup(
            state="dead",
            position=position,
            group_id=group_id,
            index=index,
            group=group,
            reason=reason,
        )
        self._unused.append(unused)
        self._num_dead += bounded
        if self._num_dead > self._max_dead:
            raise SggError(
                f"{self._num_dead} groups died since the last step, which is over "
                f"trainer.max_dead_groups ({self._max_dead}). The last one, {group_id}: {reason}. "
                "The trainer's log names each with its reason."
            )

    def oldest_allowed(self, policy_version: int) -> int:
        """The oldest version that a token of a batch of `policy_version` may have."""
        return policy_version - self._max_token_lag

    def reissue_stale(self, policy_version: int) -> list[PromptGroup]:
        """Ask again for every scored group that is too stale for a batch of `policy_version`.

        Returns:
            Their prompts: the next attempt, with new enough weights. Each is to be asked for once
            it is among the `unanswered`.
        """
        allowed = self.oldest_allowed(policy_version)
        again = []
        for work_id, group in list(self._ready.items()):
            if group.scored is None or group.scored.oldest_policy_version >= allowed:
                continue
            prompt = group.prompt.model_copy(
                update={"attempt": group.prompt.attempt + 1, "min_policy_version": policy_version}
            )
            del self._open[work_id], self._ready[work_id]
            self.add(group.position, prompt, group.source)
            self._outcome.stale.append(prompt.group_id)
            self._unused.append(_unused("stale", group.scored))
            again.append(prompt)
        return again

    def replace_zero_variance(self) -> bool:
        """Drop groups that teach nothing, lowest positions first, up to the step's bound.

        DAPO (arXiv 2503.14476), section 3.2, samples until the batch is full; here a step that has
        replaced `algorithm.max_replaced` takes what there is.

        Returns:
            Whether there is room for others now.
        """
        before = len(self._open)
        for group in self._candidates():
            if len(self._outcome.replaced) >= self._max_replaced:
                break
            if has_zero_variance(group.rewards, self._normalise):
                del self._open[group.rollout.work_id], self._ready[group.rollout.work_id]
                self._outcome.replaced.append(group.rollout.group_id)
                self._unused.append(_unused("zero_variance", group))
                self._outcome.positions.append(group.position)
        return len(self._open) < before

    def take(self, policy_version: int) -> tuple[list[TrainGroup], Outcome] | None:
        """A step's groups, lowest positions first, and what became of others since the last step.

        None while there are too few, or one is missing for which the next step would be too late.

        Args:
            policy_version: That the step trains.
        """
        if self.num_ready < self._groups_per_step:  # asked after each group: nothing is sorted
            return None
        groups = self._candidates()[: self._groups_per_step]
        if len(groups) < self._groups_per_step or self._is_last_chance(policy_version):
            return None
        for group in groups:
            self._ready.pop(group.rollout.work_id).taken = True
        outcome, self._outcome = self._outcome, Outcome()
        self.unused, self._unused = self._unused, []
        self._num_dead = 0
        return groups, outcome

    def close(self, work_id: str) -> None:
        """The step of a taken group is over: published, skipped, or ended by a stop."""
        del self._open[work_id]

    def _is_last_chance(self, policy_version: int) -> bool:
        """Whether the next step would be too late for a group that is not scored yet.

        Its first tokens may be of the version that it was asked with.
        """
        allowed = self.oldest_allowed(policy_version)
        return any(
            group.scored is None and group.prompt.min_policy_version <= allowed
            for group in self._open.values()
        )

    def _candidates(self) -> list[TrainGroup]:
        """Scored groups whose turn it may be, by position."""
        of_turn = self._open if self._in_order else self._ready
        waiting = [group for group in of_turn.values() if not group.taken]
        found: list[TrainGroup] = []
        for group in sorted(waiting, key=lambda group: group.position):
            if group.scored is None:
                break
            found.append(group.scored)
        return found


def _unused(state: GroupState, group: TrainGroup) -> UnusedGroup:
    return UnusedGroup(
        state=state,
        position=group.position,
        group_id=group.rollout.group_id,
        index=group.index,
        group=group,
    )
