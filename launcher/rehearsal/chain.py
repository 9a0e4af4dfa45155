"""The stages of a rehearsal, one after the other: the commands of a real run, as processes."""

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from launcher.processes import Part, PartDiedError, Supervisor
from launcher.rehearsal.cut import NUM_IMAGES, NUM_STEPS, sft_settings
from launcher.rehearsal.memory import PeakMemory, trainer_pids
from launcher.run_parts import sgg_rl
from services.errors import SggError
from services.run_folder import RunFolder
from services.run_folder.events import read_events
from services.run_folder.tables import StepRow, TableFollower
from services.settings import Settings, dump_settings

State = Literal["passed", "failed", "not run"]
STAGES = (
    "data rows",
    "start model",
    "prompts",
    "SFT step",
    "rollout server",
    "GRPO steps",
    "publish",
    "checkpoint",
    "kill and resume",
    "infer",
    "evaluate",
    "report",
)
"""All of them, in their order."""
_GRACE_S = 330.0
"""What `sgg-rl run` gets to end: its own trainer's time for a checkpoint, and some more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What became of one stage."""

    name: str
    state: State
    seconds: float | None = None
    detail: str = ""
    """What came of it, or why it failed."""


@dataclass(slots=True, kw_only=True)
class Chain:
    """Runs stages until one fails.

    Args:
        settings: Of GRPO; its `run.root` is the rehearsal's folder.
        memory: Is told to look while processes run.
        say: Takes a line for people.
        environment: Variables of every command.
    """

    settings: Settings
    memory: PeakMemory
    say: Callable[[str], None]
    environment: Mapping[str, str]
    done: list[Stage] = field(default_factory=list)

    def stages(self) -> list[Stage]:
        """All of them, those that were not come to among them."""
        seen = {stage.name for stage in self.done}
        return [*self.done, *(Stage(name=n, state="not run") for n in STAGES if n not in seen)]

    @contextmanager
    def stage(self, name: str) -> Iterator[list[str]]:
        """A block as a stage, which fails where it raises; the list takes what came of it."""
        self.say(f"{name} ...")
        started, said = time.monotonic(), list[str]()
        try:
            yield said
        except SggError as error:
            self._note(name, "failed", time.monotonic() - started, error.message)
            raise
        self._note(name, "passed", time.monotonic() - started, "; ".join(said))

    def sft(self) -> None:
        """One step, from the start model to `sft/model`."""
        settings = sft_settings(self.settings)
        with self.stage("SFT step") as said:
            self._run("sft", sgg_rl("sft", self._config(settings)))
            said.append(_size(settings.run.files.model))
            shutil.rmtree(settings.run.files.checkpoints)

    def grpo(self) -> None:
        """`sgg-rl run`, whose trainer is killed after its first checkpoint.

        Raises:
            SggError: The run, or what it was to show, failed.
        """
        folder, started = self.settings.run.files, time.monotonic()
        watch = _RunWatch(folder)
        try:
            self._run("grpo", sgg_rl("run", self._config(self.settings)), tick=watch.look)
        except PartDiedError as error:
            reached = "GRPO steps" if watch.ready_at else "rollout server"
            self._note(reached, "failed", time.monotonic() - started, error.message)
            raise
        self._note("rollout server", "passed", (watch.ready_at or started) - started)
        rows, events = TableFollower[StepRow](folder.metrics).read().rows, read_events(folder.path)
        times = {k: [e.time for e in events if e.kind == k] for k in ("started", "checkpoint")}
        phases = [row["phases_s"] for row in rows]
        trained = sum(p.get("train", 0.0) for p in phases)
        self._shown("GRPO steps", len(rows) == NUM_STEPS, trained, f"{len(rows)} steps")
        published = sum(p.get("publish", 0.0) for p in phases)
        number = sum(event.kind == "published" for event in events)
        transport = self.settings.weights.transport
        self._shown("publish", number > 0, published, f"{number} versions by {transport}")
        saved = sum(p.get("checkpoint", 0.0) for p in phases)
        seconds = saved or None  # the time of a last one is in no step's row
        self._shown("checkpoint", bool(times["checkpoint"]), seconds, _size(folder.checkpoints))
        resumed = [at for at in times["started"] if watch.killed_at and at > watch.killed_at]
        again = resumed[0] - (watch.killed_at or 0.0) if resumed else None
        self._shown("kill and resume", bool(resumed), again, "kill -9, back at its checkpoint")
        shutil.rmtree(folder.checkpoints)

    def infer(self, heldout: str) -> None:
        """The trained model's graphs of some held-out images."""
        folder = self.settings.run.root / "inference"
        model = str(self.settings.run.files.checkpoint)
        with self.stage("infer") as said:
            options = ["--model", model, "--output", str(folder), "--limit", str(NUM_IMAGES)]
            self._run("infer", sgg_rl("infer", self._config(self.settings), heldout, *options))
            said.append(f"{NUM_IMAGES} images of {self.settings.evaluation.max_tokens} tokens")

    def evaluate(self, heldout: str) -> None:
        """The metrics of these graphs, and the report.

        Raises:
            SggError: They are not there.
        """
        root = self.settings.run.root
        with self.stage("evaluate"):
            options = ["--reference", heldout, "--split", "rehearsal"]
            options += ["--output", str(root / "evaluation")]
            self._run("evaluate", sgg_rl("evaluate", None, str(root / "inference"), *options))
        with self.stage("report") as said:
            for file in (root / "evaluation/report.html", self.settings.run.files.report):
                if not file.is_file():
                    raise SggError(f"{file} was not written")
                said.append(file.relative_to(root).as_posix())

    def _config(self, settings: Settings) -> Path:
        file = settings.run.root / f"{settings.run.name}.toml"
        file.write_text(dump_settings(settings))
        return file

    def _run(self, name: str, command: list[str], tick: Callable[[], None] = lambda: None) -> None:
        """One command, to its end; its log is `logs/NAME.log`.

        Raises:
            PartDiedError: It failed; the message has the end of its log.
        """

        def look() -> None:
            self.memory.look()
            tick()

        with Supervisor(self.settings.run.root / "logs", say=self.say) as supervisor:
            supervisor.start(
                Part(name=name, command=command, grace_s=_GRACE_S, environment=self.environment)
            )
            supervisor.wait_done(name, tick=look)

    def _shown(self, name: str, is_shown: bool, seconds: float | None, detail: str) -> None:
        """A stage that a run's records show.

        Raises:
            SggError: They do not.
        """
        self._note(name, "passed" if is_shown else "failed", seconds, detail)
        if not is_shown:
            raise SggError(f"{name}: the records in {self.settings.run.folder} do not show it")

    def _note(self, name: str, state: State, seconds: float | None, detail: str = "") -> None:
        self.done.append(Stage(name=name, state=state, seconds=seconds, detail=detail))


@dataclass(slots=True)
class _RunWatch:
    """Sees when a run's servers are ready, and kills its trainer once it has a checkpoint."""

    folder: RunFolder
    ready_at: float | None = None
    """Monotonic seconds."""
    killed_at: float | None = None
    """Unix seconds."""

    def look(self) -> None:
        """To be called several times a second."""
        if self.ready_at is None and (self.folder.logs / "trainer.log").exists():
            self.ready_at = time.monotonic()
        if self.killed_at is None and self.folder.newest_checkpoint is not None:
            for pid in trainer_pids()[:1]:
                os.kill(pid, signal.SIGKILL)
                self.killed_at = time.time()


def _size(folder: Path) -> str:
    """Example: `"checkpoints, 4.6 GiB"`."""
    total = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return f"{folder.name}, {total / 2**30:.1f} GiB"
