"""`sgg-rl demo`: the whole loop on this machine, from an empty folder to plots."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any
from urllib.parse import urlsplit

from rich.console import Console
from rich.table import Table

from launcher.folder import RunFolder, run_lock
from launcher.preflight.folders import check_run_folder
from launcher.preflight.gpus import check_gpus
from launcher.preflight.trackers import check_trackers
from launcher.processes import STOP_SIGNALS, Part, PartDiedError, Supervisor, http_probe
from launcher.rubric_check import check_rubric
from launcher.table import RunTable
from scene_data.dataset import open_dataset
from services.errors import SettingsError, WaitTimeoutError
from services.ports import free_port, is_listening
from services.redis_client import redis_answers
from services.settings import Settings, dump_settings, environment_value
from services.telemetry import setup_logging

MAX_RESTARTS = 3
Say = Callable[[str], None]


def run_demo(settings: Settings, *, resume: bool = False) -> int:
    """Start Redis, the reward service and a rollout server; evaluate, train, evaluate; stop all.

    Args:
        settings: Of the run. Ports that are taken are replaced by free ones.
        resume: Go on with the run of this name from its last checkpoint.

    Returns:
        The exit code: 0 done, 1 a part failed (which one is said), 130 interrupted.

    Raises:
        ConflictError: The run is going on already.
        SettingsError: The rubric cannot reward the task, or a tracker is not installed.
        SggError: What evaluation and report raise.
    """
    check_rubric(settings)
    check_trackers(settings)
    check_run_folder(settings.run.root)
    if settings.rollout.engine == "vllm":
        check_gpus(1, who="the demo")
    console = Console()
    say: Say = partial(console.print, soft_wrap=True, highlight=False, markup=False)
    folder = RunFolder(settings.run.folder)
    with run_lock(folder.path) as lock:
        if resume and folder.finished:
            say(f"{folder.path} is finished: nothing to resume")
            return 0
        moved = folder.prepare(resume=resume)
        if moved:
            say(f"the earlier run of this name is kept in {moved}")
        settings = with_free_ports(settings)
        folder.config.write_text(dump_settings(settings))
        folder.logs.mkdir(exist_ok=True)
        setup_logging("demo", folder.logs / "demo.log")  # the terminal is the table's
        try:
            with signals_as_interrupt():
                _run(settings, folder, lock, console, say, resume=resume)
        except (PartDiedError, WaitTimeoutError) as error:
            return _ended_early(folder, error.message, 1)
        except KeyboardInterrupt:
            return _ended_early(folder, "interrupted", 130)
    return 0


def _run(
    settings: Settings,
    folder: RunFolder,
    lock: int,
    console: Console,
    say: Say,
    *,
    resume: bool,
) -> None:
    """The story of a run."""
    steps = settings.trainer.num_steps
    if steps is None:
        dataset = open_dataset(settings.data.train, task=settings.data.task)
        steps = settings.trainer.total_steps(len(dataset))
    with (
        Supervisor(folder.logs, say=say, held_fds=[lock]) as supervisor,
        RunTable(folder.metrics, steps, supervisor.states, console) as table,
    ):
        parts = {part.name: part for part in run_parts(settings, folder, resume=resume)}
        for names in (["redis"], ["reward", "rollout"]):
            say(f"starting {' and '.join(names)} (logs in {folder.logs})")
            for name in names:
                supervisor.start(parts[name])
            supervisor.wait_ready(*names, tick=table.update)
        _evaluate(settings, folder, "before", 0, supervisor, table, say)
        say(f"training {steps} steps")
        supervisor.start(parts["trainer"])
        supervisor.wait_done("trainer", tick=table.update)
        _evaluate(settings, folder, "after", steps, supervisor, table, say)
    console.print(summary_table(folder.evaluations()))
    _report(settings, folder, say)
    folder.mark_finished()


def run_parts(settings: Settings, folder: RunFolder, *, resume: bool) -> list[Part]:
    """The processes of a run, in the order of their start."""
    serve = [sys.executable, "-m", "cli.main", "serve"]
    config = ["--config", str(folder.config)]
    train = [sys.executable, "-m", "cli.main", "train", *config]
    threads = compute_threads()
    return [
        Part(
            name="redis",
            command=[*serve, "redis", *config],
            ready=lambda: redis_answers(settings.redis),
            ready_timeout_s=60.0,
        ),
        *(
            Part(
                name=name,
                command=[*serve, name, *config],
                ready=http_probe(f"{url}/readyz"),
                alive=http_probe(f"{url}/healthz", says=f"{name} service"),
                max_restarts=MAX_RESTARTS,
                environment=threads,
            )
            for name, url in (("reward", settings.reward.url), ("rollout", settings.rollout.url))
        ),
        Part(
            name="trainer",
            command=[*train, "--resume"] if resume else train,
            environment=threads,
        ),
    ]


def compute_threads() -> dict[str, str]:
    """Half of the cores for each part that computes, unless the user has said otherwise.

    Sampler and trainer work at the same time. OpenMP threads spin while they wait, so two parts
    that each take every core make one another many times slower.
    """
    if environment_value("OMP_NUM_THREADS") is not None:
        return {}
    return {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // 2))}


def with_free_ports(settings: Settings) -> Settings:
    """The settings with each service on this host, on a port that is free now.

    Raises:
        SettingsError: A service's url is on another host: then the parts are started one by one.
    """
    changes = {}
    for name in ("redis", "reward", "rollout"):
        section = getattr(settings, name)
        url = _on_free_port(name, section.url)
        changes[name] = section.model_copy(update={"url": url})
    return settings.model_copy(update=changes)


def _on_free_port(name: str, url: str) -> str:
    place = urlsplit(url)
    if place.hostname not in ("127.0.0.1", "localhost"):
        raise SettingsError(
            f"{name}.url is {url}: the demo runs on this machine only; use 127.0.0.1, or start the "
            "services on their hosts with `sgg-rl serve` and then `sgg-rl train`"
        )
    port = place.port or 80
    if is_listening(port):
        port = free_port()
    return place._replace(netloc=f"127.0.0.1:{port}").geturl()


def _evaluate(
    settings: Settings,
    folder: RunFolder,
    label: str,
    policy_version: int,
    supervisor: Supervisor,
    table: RunTable,
    say: Say,
) -> None:
    """A result that a resumed run has already is kept."""
    if label in folder.evaluations():
        return
    # Imported here: it must not slow down the start of the services.
    from evaluation.heldout import evaluate_heldout

    say(f"held-out evaluation {label} training")
    result = supervisor.watch(
        lambda: evaluate_heldout(settings, label=label, policy_version=policy_version),
        tick=table.update,
    )
    folder.add_evaluation(label, result)


def _report(settings: Settings, folder: RunFolder, say: Say) -> None:
    from evaluation.heldout_report import write_heldout_report
    from evaluation.plots import write_plots

    for file in (*write_plots(folder.path), write_heldout_report(settings)):
        say(f"wrote {file}")


def summary_table(evaluations: dict[str, dict[str, Any]]) -> Table:
    """Every number of the held-out evaluations, before and after."""
    before, after = evaluations.get("before", {}), evaluations.get("after", {})
    table = Table("held out", "before", "after", "change", title="Result", title_justify="left")
    for name, new in after.items():
        old = before.get(name)
        if isinstance(new, int | float) and isinstance(old, int | float):
            table.add_row(name, f"{old:.4g}", f"{new:.4g}", f"{new - old:+.4g}")
    return table


@contextmanager
def signals_as_interrupt() -> Iterator[None]:
    """SIGTERM and a closed terminal end a run as Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = [signal.signal(number, interrupt) for number in STOP_SIGNALS]
    try:
        yield
    finally:
        for number, handler in zip(STOP_SIGNALS, before, strict=True):
            signal.signal(number, handler)


def _ended_early(folder: RunFolder, why: str, code: int) -> int:
    head, _, log_tail = why.partition("\n")
    if log_tail:
        print(log_tail, file=sys.stderr)
    resume = f"`sgg-rl demo --resume --config {folder.config}`"
    print(
        f"sgg-rl: {head.rstrip(':.')}. All parts are stopped; go on with {resume}", file=sys.stderr
    )
    return code
