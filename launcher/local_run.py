"""`sgg-rl run`: a whole run on this machine; `sgg-rl demo`: with held-out evaluations around it."""

import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass

from launcher.folder import prepare_folder, run_lock
from launcher.processes import PartDiedError, Supervisor
from launcher.run_parts import RunParts, run_parts, server_urls, with_free_ports
from launcher.signals import handled, heeded_signals
from launcher.views.run_summary import closing_lines, plan_lines, summary_table
from launcher.views.run_table import RunTable, term_weights
from launcher.views.terminal import SafeConsole, Say, open_console, say_on
from planning.placement import colocated, place
from planning.preflight.bare import check_start
from planning.preflight.folders import check_run_folder
from planning.preflight.inputs import checked
from planning.preflight.rows import opened
from services.errors import WaitTimeoutError
from services.host.ports import ReservedPorts
from services.printable import counted, printable
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
        allow_changes: Also with another dataset, instruction, temperature, rubric or algorithm.
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
        settings = settings.changed(data={"heldout": settings.data.train})
    if placement.shared:
        settings = colocated(settings)
    num_steps = _num_steps(settings)
    console = open_console()
    say = say_on(console)
    folder = settings.run.files
    with run_lock(folder.path) as lock, ReservedPorts() as ports:
        if resume and folder.finished.exists():
            say(f"{folder.path} is finished: nothing to resume")
            return 0
        moved = prepare_folder(folder, resume=resume)
        if moved:
            say(f"the earlier run of this name is kept in {moved}")
        settings = with_free_ports(settings, ports)
        folder.config.write_text(dump_settings(settings))
        folder.logs.mkdir(exist_ok=True)
        command = "demo" if evaluate else "run"
        setup_logging(command, folder.logs / f"{command}.log")  # the terminal is the table's
        urls = server_urls(settings, ports)
        how = ["--resume"] * resume + ["--allow-changes"] * allow_changes
        parts = run_parts(settings, placement, urls, how)
        run = _Run(settings, folder, console, say, urls, num_steps, evaluates=evaluate)
        try:
            # SIGTERM, and a closed terminal, end it as Ctrl-C does.
            with handled(heeded_signals(), signal.default_int_handler):
                say("\n".join(plan_lines(settings, placement, urls, num_steps)))
                run.do(parts, lock)
            return 0
        except (PartDiedError, WaitTimeoutError) as error:
            why, code = error.message, 1
        except KeyboardInterrupt:
            why, code = "interrupted", 130
        return _ended_early(folder, command, why, code, began=resume or run.trains)


@dataclass
class _Run:
    """The story of a run."""

    settings: Settings
    folder: RunFolder
    console: SafeConsole
    say: Say
    urls: list[str]
    num_steps: int
    evaluates: bool
    trains: bool = False
    """Whether the trainer has been started."""

    def do(self, parts: RunParts, lock: int) -> None:
        """Start, train, stop; what was written is said."""
        folder = self.folder
        with (
            Supervisor(folder.logs, say=self.say, held_fds=[lock]) as supervisor,
            RunTable(
                folder,
                self.num_steps,
                supervisor.states,
                self.console,
                term_weights(self.settings),
            ) as table,
        ):
            started = time.monotonic()
            names = [part.name for part in (parts.redis, *parts.services)]
            self.say(f"starting {', '.join(names)}")
            if parts.monitor is not None:  # the last to stop: somebody may be looking
                supervisor.start(parts.monitor)
            supervisor.start(parts.redis)
            supervisor.start(*parts.services)
            supervisor.wait_ready(*names, tick=table.update)
            self.say(f"ready after {time.monotonic() - started:.0f} s")
            self.say(f"training {counted(self.num_steps, 'step')}")
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
        from evaluation.of_a_run.results import ResultsProcess

        if not self.evaluates or "after" in heldout_summary(self.folder):
            return
        self.say("held-out evaluation after training")
        work = evaluate_heldout(self.settings, self.urls, policy_version=self.num_steps)
        supervisor.watch(work, tick=table.update)
        ResultsProcess(self.folder).finish()

    def _report(self) -> None:
        """The trainer has drawn the results."""
        from evaluation.of_a_run.heldout import heldout_summary
        from evaluation.of_a_run.results import written_results

        if self.evaluates:
            self.console.print(summary_table(heldout_summary(self.folder)))
        for file in (*written_results(self.folder), self.folder.checkpoint):
            self.say(f"wrote {file}")
        if self.settings.monitor.console:
            self.say(f"the console ends with the run; again: sgg-rl console {self.folder.path}")
        if self.evaluates:
            self.say("\n".join(["", *closing_lines(heldout_summary(self.folder), self.folder)]))


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
