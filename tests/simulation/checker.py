"""What must hold of a run, whatever befalls it."""

import json
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic_core import from_json

from services.redis.keys import RunKeys
from services.schemas.groups import TrainGroup
from trainer.collection.cursor import CursorState

if TYPE_CHECKING:
    from tests.simulation.world import World


SETTLED_S = 8.0
"""After the last fault: until a run has told a Redis that lost its data where it is."""


class Checker:
    """Looks at what is trained, and at what is on disk."""

    def __init__(self, world: "World") -> None:
        self._world = world

    def trains(self, history: Sequence[int], groups: Sequence[TrainGroup]) -> None:
        """A step is about to train: its tokens are of the versions that they say.

        Args:
            history: Identity of each version of this trainer's policy; the last is trained.
            groups: The step's.
        """
        step = len(history) - 1
        names = [group.rollout.group_id for group in groups]
        if len({*names}) < len(names):
            self._world.violated("trained twice", f"step {step} has {names}")
        for group in groups:
            for completion in group.rollout.completions:
                for span in completion.policy_versions:
                    tokens = {*completion.token_ids[span.start : span.end]}
                    self._check_span(step, history, group, span.policy_version, tokens)

    def _check_span(
        self,
        step: int,
        history: Sequence[int],
        group: TrainGroup,
        version: int,
        tokens: set[int],
    ) -> None:
        name, oldest = group.rollout.work_id, step - self._world.settings.trainer.oldest_token_lag
        if not max(0, oldest) <= version <= step:
            self._world.violated("too stale", f"step {step} trains version {version}, of {name}")
        elif tokens != {history[version]}:
            self._world.violated(
                "wrong version",
                f"step {step}: tokens of {name} by {group.rollout.server_id} say version {version} "
                f"({history[version]}), and are of {tokens}",
            )

    def records(self, num_steps: int, cursor: CursorState | None = None) -> None:
        """The ledger is whole: one line a step, no group twice, each of the cursor's positions.

        Args:
            num_steps: That it has lines of.
            cursor: Of the checkpoint after these steps.
        """
        lines = self._lines(num_steps)
        if lines is None:
            return
        used = [name for line in lines for name in line["group_ids"]]
        ended = [n for line in lines for key in ("dead", "skipped", "no_spread") for n in line[key]]
        if len({*used}) < len(used):
            twice = sorted({name for name in used if used.count(name) > 1})
            self._world.violated("trained twice", f"{twice} in the first {num_steps} steps")
        if len({*used, *ended}) < len(used) + len(ended):
            self._world.violated("ended twice", f"of {sorted(used + ended)}")
        for name in (n for line in lines for n in line["dead"]):
            if name not in self._world.guilty:
                self._world.violated("innocent and dead", f"{name}: nothing is wrong with it")
        if cursor is not None:
            self._check_cursor(cursor, {*used, *ended})
        if self._world.plan.undisturbed_order:
            size = self._world.plan.groups_per_step
            for line in lines:
                wanted = range(line["step"] * size, (line["step"] + 1) * size)
                if [*map(self._world.position, line["group_ids"])] != [*wanted]:
                    self._world.violated("other order", f"step {line['step']}: {line['group_ids']}")

    def finished(self) -> None:
        """The run has come to its end."""
        checkpoints = self._world.settings.run.files.checkpoints
        last = max(checkpoints.glob("step-*"))
        state = json.loads((last / "trainer.json").read_text())
        self.records(self._world.plan.num_steps, CursorState.model_validate(state["cursor"]))
        self._check_index()
        self._check_redis()

    def _lines(self, num_steps: int) -> list[dict[str, Any]] | None:
        """The ledger's; None where it, or the metrics beside it, are not whole."""
        files = self._world.settings.run.files
        for file in (files.metrics, files.ledger):
            text = file.read_text() if file.exists() else ""
            try:
                lines: list[dict[str, Any]] = [from_json(line) for line in text.splitlines()]
            except ValueError:
                self._world.violated("torn ledger", f"{file.name}: {text[-200:]!r}")
                return None
            if (steps := [line["step"] for line in lines]) != [*range(num_steps)]:
                said = f"{file.name}: {num_steps} steps, lines of {steps}"
                self._world.violated("torn ledger", said)
                return None
        return lines

    def _check_index(self) -> None:
        """The index has the groups of each ledger line, and no others."""
        files = self._world.settings.run.files
        told = sorted(
            (line["step"], name)
            for line in map(from_json, files.ledger.read_text().splitlines())
            for key in ("group_ids", "stale", "dead", "no_spread")
            for name in line[key]
        )
        index = files.rollouts / "index.rank0.jsonl"
        lines = [from_json(line) for line in index.read_text().splitlines()]
        found = sorted((line["step"], line["group_id"]) for line in lines)
        if found != told:
            text = f"more: {_without(found, told)}, missing: {_without(told, found)}"
            self._world.violated("index and ledger differ", text)

    def _check_redis(self) -> None:
        """Redis knows the latest start of the trainer again, once it had time to be told."""
        world = self._world
        begun = [fault for fault in world.plan.faults if fault.at_s <= world.loop.now]
        if any(fault.at_s + fault.for_s + SETTLED_S > world.loop.now for fault in begun):
            return
        key = RunKeys(world.settings.run.name).run.encode()
        told = world.redis.twin.run([b"HGET", key, b"incarnation"])
        latest = world.settings.run.files.incarnation.read_text()
        if told != latest.encode():
            world.violated("forgotten by Redis", f"start {latest} of the trainer; it says {told}")

    def _check_cursor(self, cursor: CursorState, ended: set[str]) -> None:
        done = {*range(cursor.low), *cursor.ahead}
        told = {*map(self._world.position, ended)}
        if lost := done - told:
            self._world.violated(
                "group lost", f"positions {sorted(lost)} are done, nobody says how"
            )
        if again := told - done:
            self._world.violated("group lost", f"positions {sorted(again)} would be trained again")


def _without(some: list[tuple[int, str]], others: list[tuple[int, str]]) -> list[tuple[int, str]]:
    return sorted((Counter(some) - Counter(others)).elements())
