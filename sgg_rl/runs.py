"""A training run, from its folder."""

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from services.errors import InvalidInputError, NotFoundError
from services.run_folder import AnyRow, EvaluationRow, RunFolder, StepRow, TableFollower
from services.settings import Settings, load_settings
from sgg_rl.arguments import AnyPath, checked

if TYPE_CHECKING:
    from services.run_folder.records import RolloutRecord
    from services.schemas.weights import ServerRecord
    from sgg_rl.clients import Client


class Run:
    """What a run has written so far. Each look reads the files again; nothing is changed."""

    def __init__(self, folder: RunFolder) -> None:
        """As `connect` makes it."""
        self._folder = folder

    def __repr__(self) -> str:
        steps = self.steps
        done = f"{len(steps)} of {steps[-1].get('num_steps', '?')} steps" if steps else "no step"
        return f"<Run {self.folder.name!r}: {done}{', finished' * self.is_finished}>"

    @property
    def folder(self) -> Path:
        """Checkpoints, pictures and all else of the run are in it (docs/metrics.md)."""
        return self._folder.path

    @cached_property
    def settings(self) -> Settings:
        """Those of its last start.

        Raises:
            SettingsError: They are another release's.
        """
        return load_settings(self._folder.config, environment={})

    @property
    def is_finished(self) -> bool:
        """Whether it came to its end; one that failed or was stopped did not."""
        return self._folder.finished.exists()

    @property
    def steps(self) -> list[StepRow]:
        """A row for each step, GRPO's or SFT's: the lines of `metrics.jsonl`."""
        return _rows(self._folder.metrics, TableFollower[StepRow])

    @property
    def evaluations(self) -> list[EvaluationRow]:
        """A row for each version that was evaluated on held-out images while the run trained."""
        return _rows(self._folder.evaluations, TableFollower[EvaluationRow])

    def rollouts(self, step: int) -> "list[RolloutRecord]":
        """The groups that a step was trained on: prompts, answers, rewards and advantages.

        Raises:
            InvalidInputError: The step is no number.
            NotFoundError: It has none, or they are no longer kept (`records.keep_rollouts`).
        """
        from services.run_folder.records import read_rollouts

        if not isinstance(step, int):
            raise InvalidInputError(f"a step is a number, from 0, and not {step!r}")
        if not (records := read_rollouts(self.folder, step)):
            raise NotFoundError(f"no groups of step {step} in {self._folder.rollouts}")
        return records

    def servers(self) -> "list[ServerRecord]":
        """The rollout servers that are there now, by id; none of a run that is finished.

        Raises:
            UnavailableError: The run's Redis does not answer: is the run still there?
        """
        if self.is_finished:
            return []
        from services.http.clients.sync import run_here

        return run_here(_servers(self.settings))

    def client(self) -> "Client":
        """Asks the run's reward service, and the first of its servers that is ready.

        Raises:
            NotFoundError: No server is ready.
            UnavailableError: As `servers`.
        """
        from sgg_rl.clients import Client

        ready = [server.url for server in self.servers() if server.state == "ready"]
        if not ready:
            raise NotFoundError(f"{self.settings.run.name} has no rollout server that is ready")
        return Client(
            rollout_url=ready[0],
            reward_url=self.settings.reward.url,
            token=self.settings.data_token,
            registered=self.settings.security,
        )


@checked
def connect(run: AnyPath) -> Run:
    """A run, while it trains or long after.

    Example:
        >>> run = sgg_rl.connect("runs/demo")
        >>> run
        <Run 'demo': 2 of 80 steps>
        >>> [row["reward_mean"] for row in run.steps]
        [1.5, 2.25]
        >>> run.settings.trainer.group_size
        8

    Args:
        run: Its folder.

    Raises:
        NotFoundError: There is no run.
    """
    folder = RunFolder(Path(run))
    if not folder.config.is_file():
        raise NotFoundError(f"no run in {folder.path}: it has no config.toml")
    return Run(folder)


def _rows(file: Path, follower: type[TableFollower[AnyRow]]) -> list[AnyRow]:
    return follower(file).read().rows


async def _servers(settings: Settings) -> "list[ServerRecord]":
    from services.redis.registry import open_registry

    async with open_registry(settings) as registry:
        return await registry.servers(starting=True)
