"""`sgg-rl run`: a whole run on this machine; `sgg-rl demo`: with held-out evaluations around it."""

import sys
import time
from contextlib import suppress

from launcher.folder import prepare_folder, run_lock
from launcher.processes import PartDiedError, Supervisor
from launcher.run_parts import RunParts, run_parts, server_urls, with_free_ports
from launcher.run_view import plan_lines, summary_table
from launcher.signals import handled, heeded_signals, interrupt
from launcher.table import RunTable
from launcher.terminal import SafeConsole, open_console, say_on
from planning.placement import colocated, place
from planning.preflight.bare import check_start
from planning.preflight.folders import check_run_folder
from planning.preflight.inputs import checked
from planning.preflight.rows import opened
from services.errors import WaitTimeoutError
from services.host.ports import ReservedPorts
from services.printable import printable
from services.run_folder import RunFolder
from services.settings import Settings, dump_settings
from services.telemetry import setup_logging


def run_here(
    settings: Settings,
    *,
    resume: bool = False,
    allow_changes: bool = False,
    evaluate: bool = False,
) -> int:
    """Start Redis, the reward service and the rollout servers; train; stop all.

    Args:
        settings: The run's settings. Ports that are taken are replaced by free ones.
        resume: Go on with the run of this name from its last checkpoint.
        allow_changes: Also with another dataset, instruction, temperature or rubric.
        evaluate: Evaluate the held-out images before and after, and report: the demo. Without
            `data.heldout` they are the first rows of `data.train`.

    Returns:
        The exit code: 0 done, 1 a part failed (which one is said), 130 interrupted.

    Raises:
        ConflictError: The run is going on already.
        SettingsError: The settings do not go together, or ask for more than this machine has.
        SggError: What evaluation and report raise.
    """
    check_run_folder(settings.run.root)
    if settings.rollout.engine == "vllm":
        check_start("memory", "/dev/shm", "caches")
    placement = place(settings)
    settings = checked(settings)
    if evaluate and settings.data.heldout is None:
        data = settings.data.model_copy(update={"heldout": settings.data.train})
        settings = settings.model_copy(update={"data": data})
    if placement.shared:
        settings = colocated(settings)
    num_steps = _num_steps(settings)
    console = open_console()
    folder = settings.run.files
    with run_lock(folder.path) as lock, ReservedPorts() as ports:
        if resume and folder.finished.exists():
            say_on(console)(f"{folder.path} is finished: nothing to resume")
            return 0
        moved = prepare_folder(folder, resume=resume)
        if moved:
            say_on(console)(f"the earlier run of this name is kept in {moved}")
        settings = with_free_ports(settings, ports)
        folder.config.write_text(dump_settings(settings))
        folder.logs.mkdir(exist_ok=True)
        command = "demo" if evaluate else "run"
        setup_logging(command, folder.logs / f"{command}.log")  # the terminal is the table's
        urls = server_urls(settings, ports)
        how = ["--resume"] * resume + ["--allow-changes"] * allow_changes
        parts = run_parts(settings, folder, placement, urls, how)
        run = _Run(settings, folder, console, urls, num_steps, evaluate=evaluate)
        try:
            with handled(heeded_signals(), interrupt):  # SIGTERM, and a closed terminal, as Ctrl-C
                run.say("\n".join(plan_lines(settings, folder, placement, urls, num_steps)))
                run.do(parts, lock)
        except (PartDiedError, WaitTimeoutError) as error:
            began = resume or run.trains
            return _ended_early(folder, command, error.message, 1, began=began)
        except KeyboardInterrupt:
            began = resume or run.trains
            return _ended_early(folder, command, "interrupted", 130, began=began)
    return 0


class _Run:
    """The story of a run."""

    def __init__(
        self,
        settings: Settings,
        folder: RunFolder,
        console: SafeConsole,
        urls: list[str],
        num_steps: int,
        *,
        evaluate: bool,
    ) -> None:
        self.say = say_on(console)
        self.trains = False
        """Whether the trainer has been started."""
        self._num_steps = num_steps
        self._settings = settings
        self._folder = folder
        self._console = console
        self._urls = urls
        self._evaluates = evaluate

    def do(self, parts: RunParts, lock: int) -> None:
        """Start, train, stop; what was written is said."""
        folder = self._folder
        with (
            Supervisor(folder.logs, say=self.say, held_fds=[lock]) as supervisor,
            RunTable(folder, self._num_steps, supervisor.states, self._console) as table,
        ):
            started = time.monotonic()
            names = [part.name for part in (parts.redis, *parts.services)]
            self.say(f"starting {', '.join(names)}")
            supervisor.start(parts.redis)  # the last to stop
            supervisor.start(*parts.services)
            supervisor.wait_ready(*names, tick=table.update)
            self.say(f"ready after {time.monotonic() - started:.0f} s")
            self.say(f"training {self._num_steps} steps")
            # Only now: where it shares its GPUs, the servers have taken their part of them.
            self.trains = True
            supervisor.start(parts.trainer)
            supervisor.wait_done("trainer", tick=table.update)
            self._evaluate_after(supervisor, table)
        self._report()
        folder.finished.touch()

    def _evaluate_after(self, supervisor: Supervisor, table: RunTable) -> None:
        """The trainer has done it; where it failed there, it is worth another try."""
        # Imported here: it must not slow down the start of the services.
        from evaluation.of_a_run.heldout import evaluate_heldout, heldout_summary

        if not self._evaluates or "after" in heldout_summary(self._folder):
            return
        self.say("held-out evaluation after training")
        supervisor.watch(
            lambda: evaluate_heldout(self._settings, self._urls, policy_version=self._num_steps),
            tick=table.update,
        )

    def _report(self) -> None:
        from evaluation.of_a_run.heldout import heldout_summary
        from evaluation.of_a_run.report import write_run_results

        if self._evaluates:
            self._console.print(summary_table(heldout_summary(self._folder)))
        for file in (*write_run_results(self._settings), self._folder.checkpoint):
            self.say(f"wrote {file}")


def _num_steps(settings: Settings) -> int:
    if settings.trainer.num_steps is not None:
        return settings.trainer.num_steps
    return settings.trainer.total_steps(len(opened(settings.data.train, settings.data.task)))


def _ended_early(folder: RunFolder, command: str, why: str, code: int, *, began: bool) -> int:
    head, of_log, log_tail = why.partition(". End of ")
    config = f"--config {folder.config}"
    remedy = (
        f"go on with `sgg-rl {command} --resume {config}`"
        if began
        else f"once that is mended, start it again with `sgg-rl {command} {config}`"
    )
    with suppress(OSError):  # the terminal may be gone
        if of_log:
            print(f"End of {printable(log_tail)}", file=sys.stderr)
        print(f"sgg-rl: {head.rstrip('.')}. All parts are stopped; {remedy}", file=sys.stderr)
    return code
