"""Which runs there are: a folder of runs, or one run."""

import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated
from urllib.parse import quote, urlencode

from fastapi import Depends, Request

from services.errors import NotFoundError, SettingsError
from services.run_folder import RunFolder
from services.settings import RedisSettings, Settings

MOST_COMPARED = 8
"""Runs beside each other: colours that can be told apart"""


@dataclass(frozen=True)
class Run:
    """A run as pages name it.

    Example: `Run("demo", Path("runs/demo")).url == "/runs/demo"`
    """

    name: str
    path: Path

    @property
    def url(self) -> str:
        """The path of its first page; the others are below it."""
        return f"/runs/{quote(self.name, safe='')}"

    @cached_property
    def files(self) -> RunFolder:
        """Each path in its folder."""
        return RunFolder(self.path)


class Runs:
    """The runs of a folder, or the one run that the folder is.

    Args:
        folder: Looked at anew each time: runs come and go.
        own: Settings of the run that this process is a part of: its file need not have the
            addresses that its parts were given.
        changes: Whether pages may change something.
    """

    def __init__(self, folder: Path, own: Settings | None = None, *, changes: bool = False) -> None:
        self.folder = folder
        self.changes = changes
        self._own = own

    def all(self) -> list[Run]:
        """By name."""
        return [Run(path.name, path) for path in self._folders() if is_run(path)]

    def others(self) -> list[str]:
        """Names of folders that are no runs."""
        return [path.name for path in self._folders() if not is_run(path)]

    def named(self, name: str) -> Run:
        """The run of that name.

        Raises:
            NotFoundError: There is none.
        """
        found = next((path for path in self._folders() if path.name == name), None)
        if found is None:
            raise NotFoundError(f"no run {name!r} in {self.folder}")
        if not is_run(found):
            raise NotFoundError(
                f"{found} is no run: it has neither config.toml nor metrics.jsonl; name the folder "
                "of your runs, or one run, to `sgg-rl console`"
            )
        return Run(name, found)

    def redis(self, run: Run) -> RedisSettings:
        """Where a run's Redis is, also by the file of another release.

        Raises:
            SettingsError: The file does not say so in a way that can be used.
        """
        own = self._own
        if own is not None and own.run.folder.resolve() == run.path:
            return own.redis
        try:
            found = tomllib.loads(run.files.config.read_text(encoding="utf-8")).get("redis", {})
            return RedisSettings(
                **{k: v for k, v in found.items() if k in RedisSettings.model_fields}
            )
        except (OSError, ValueError, AttributeError) as error:
            raise SettingsError(
                f"{run.files.config} does not say where Redis is: {error}"
            ) from error

    def _folders(self) -> Iterator[Path]:
        path = self.folder.resolve()
        if is_run(path):
            yield path
        elif path.is_dir():
            yield from sorted(p for p in path.iterdir() if p.is_dir() and p.name[0] != ".")


def compare_address(runs: Sequence[Run]) -> str:
    """The address of some runs beside each other."""
    return "/compare?" + urlencode([("run", run.name) for run in runs[:MOST_COMPARED]])


def is_run(path: Path) -> bool:
    """Whether a folder is a run's, by what a run writes first."""
    files = RunFolder(path)
    try:
        return files.config.is_file() or files.metrics.is_file()
    except OSError:  # it may not be looked into
        return False


def _runs(request: Request) -> Runs:
    runs: Runs = request.app.state.runs
    return runs


RunsOfConsole = Annotated[Runs, Depends(_runs)]
"""A page's parameter: all runs"""


def _named(run: str, runs: RunsOfConsole) -> Run:
    return runs.named(run)


NamedRun = Annotated[Run, Depends(_named)]
"""A page's parameter: the run that `{run}` in its path names"""
