"""The parts of a run on one machine: started, waited for, watched, restarted, and all stopped.

State of a part: starting -> running -> (waiting -> starting | adopted) … -> done or stopped. A part
with restarts left comes back by itself; when any other dies, `check` raises and the run is over.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import wait
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any, Literal, Self, TypeVar

from launcher import subreaper
from launcher.signals import handled, heeded_signals
from services.errors import SggError, WaitTimeoutError
from services.host.environment import part_environment
from services.http.loop_thread import LoopThread
from services.settings.load import ENV_PREFIX
from services.waiting import WaitNotice

T = TypeVar("T")
State = Literal["starting", "running", "waiting", "adopted", "done", "stopped"]
_TICK_S = 0.3
_PROBE_S = 1.0
"""Between two questions to a part over the network."""
_TAIL_LINES = 15
_FORGIVEN_S = 600.0


class PartDiedError(SggError):
    """A part of the run is gone that must not be; the message says which, and how its log ends."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One process of a run.

    Example: `Part(name="reward", command=["sgg-rl", "serve", "reward"], max_restarts=3)`
    """

    name: str
    command: Sequence[str]
    ready: Callable[[], bool] | None = None
    """Asked once a second; None for a part that nobody waits for."""
    alive: Callable[[], bool] | None = None
    """Whether some instance answers, ours or one started by hand; such a one is adopted."""
    max_restarts: int = 0
    """In a row: they count anew after `_FORGIVEN_S` seconds of service, or as `progress` says."""
    again: Callable[[int], Sequence[str] | None] | None = None
    """The command for another start after that exit status; None where it cannot help. Without it,
    `command`."""
    progress: Callable[[], object] | None = None
    """What the part has come to: restarts count anew whenever it is another."""
    ready_timeout_s: float = 600.0
    grace_s: float = 30.0
    """What it gets to end in, once it has served: between SIGTERM and SIGKILL."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Set in addition to this process's own."""
    is_spare: bool = False
    """Whether the run goes on without it, once its restarts are over."""


@dataclass(slots=True)
class _Child:
    part: Part
    process: "subprocess.Popen[bytes] | None" = None
    state: State = "starting"
    since: float = 0.0
    """When the state began, monotonic seconds."""
    next_probe: float = 0.0
    restarts: int = 0
    command: Sequence[str] = ()
    """The command of its next start."""
    progress: object = None
    silent_probes: int = 0
    served: bool = False
    """Was ready once. Before that, another process answers in its place."""

    def __post_init__(self) -> None:
        self.command = self.part.command
        self.served = self.part.ready is None
        self.forgive()

    def forgive(self) -> None:
        """Count restarts anew where the part has got somewhere since the last one."""
        if self.part.progress is None:
            got_on = self.state == "running" and time.monotonic() - self.since > _FORGIVEN_S
        else:
            before, self.progress = self.progress, self.part.progress()
            got_on = self.progress != before
        if got_on:
            self.restarts = 0

    def may_restart(self, code: int) -> bool:
        """Whether another start is left, and of use after that exit status."""
        if not self.served or self.restarts >= self.part.max_restarts:
            return False
        command = self.part.again(code) if self.part.again else self.part.command
        self.command = command or ()
        return command is not None

    def enter(self, state: State) -> None:
        self.state, self.since, self.silent_probes = state, time.monotonic(), 0

    def probe_due(self) -> bool:
        """At most once in `_PROBE_S`."""
        if time.monotonic() < self.next_probe:
            return False
        self.next_probe = time.monotonic() + _PROBE_S
        return True


class Supervisor:
    """Starts parts in stages and stops them in reverse, however the `with` block is left.

    Start parts from one thread. Leaving a part running is not possible: each has a subreaper
    (`launcher.subreaper`) that ends it when this process is gone.
    """

    def __init__(
        self,
        logs: Path,
        *,
        say: Callable[[str], None] = print,
        held_fds: Sequence[int] = (),
    ) -> None:
        """Args are kept.

        Args:
            logs: Folder of `<part>.log`.
            say: Takes a line for people.
            held_fds: Kept open until the last part is gone, also where this process is killed.
        """
        self._logs = logs
        self._say = say
        self._held_fds = tuple(held_fds)
        self._children: dict[str, _Child] = {}
        self._stages: list[list[_Child]] = []

    def __enter__(self) -> Self:
        subreaper.become_subreaper()
        self._logs.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is KeyboardInterrupt:
            self._say("stopping all parts; Ctrl-C again stops them at once")
        self.stop()

    def start(self, *parts: Part) -> None:
        """Start parts that are stopped together, as one stage; `wait_ready` waits for them."""
        stage = [_Child(part) for part in parts]
        self._stages.append(stage)
        for child in stage:
            self._children[child.part.name] = child
            self._spawn(child)

    def wait_ready(self, *names: str, tick: Callable[[], None] = lambda: None) -> None:
        """Until each of the named parts has said that it can serve.

        Raises:
            PartDiedError: One of them, or another part, ended.
            WaitTimeoutError: One of them took over its `ready_timeout_s`.
        """
        waited = [self._children[name] for name in names]
        restarts = {child.part.name: child.restarts for child in waited}
        began, limit_s = time.monotonic(), max(c.part.ready_timeout_s for c in waited)
        notice = WaitNotice(limit_s, self._say)
        while late := [c for c in waited if c.state not in ("running", "adopted")]:
            self.check()
            tick()
            where = ", ".join(f"{c.part.name} (log {self._log(c)})" for c in late)
            notice.waited(time.monotonic() - began, f"not ready yet: {where}")
            for child in waited:  # what cannot even start will not by being started again
                if child.restarts > restarts[child.part.name]:
                    name = child.part.name
                    raise PartDiedError(f"{name} ended while starting{self._tail(child)}")
            time.sleep(_TICK_S)

    def check(self) -> None:
        """Look after every part once; call it several times a second.

        Raises:
            PartDiedError: A part is gone for good.
            WaitTimeoutError: A part did not become ready in time.
        """
        for child in self._children.values():
            if child.state in ("starting", "running"):
                self._check_ours(child)
            elif child.state == "waiting":
                self._check_waiting(child)
            elif child.state == "adopted":
                self._check_adopted(child)

    def watch(self, work: Coroutine[Any, Any, T], *, tick: Callable[[], None]) -> T:
        """The result of work on another thread; parts are looked after while it goes on."""
        loop = LoopThread("watched")
        running = loop.start(work)
        while not running.done():
            self.check()
            tick()
            wait([running], timeout=_TICK_S)
        loop.close()
        if running.exception():
            self.check()  # a part that died is the better explanation
        return running.result()

    def wait_done(self, name: str, *, tick: Callable[[], None] = lambda: None) -> None:
        """Until a part has ended with exit status 0; `check` raises for any other."""
        while self._children[name].state != "done":
            self.check()
            tick()
            time.sleep(_TICK_S)

    def states(self) -> dict[str, str]:
        """Each part's state in a word or two."""
        return {name: self._describe(child) for name, child in self._children.items()}

    def stop(self) -> None:
        """End all parts, the last stage first. A signal meanwhile takes their grace away."""
        hurry = Event()
        with handled(heeded_signals(), lambda *_: hurry.set()):
            for stage in reversed(self._stages):
                self._stop_stage(stage, hurry)
            self._end_orphans()

    def _spawn(self, child: _Child) -> None:
        environment = part_environment(PYTHONUNBUFFERED="1", **child.part.environment)
        # The configuration file has them resolved, ports included: they must not win again.
        environment = {k: v for k, v in environment.items() if not k.startswith(ENV_PREFIX)}
        with self._log(child).open("ab") as log:
            child.process = subprocess.Popen(
                subreaper.command(child.part.grace_s, child.command),
                stdin=subprocess.PIPE,  # never written: its end says that we are gone
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,  # Ctrl-C reaches us only, and we stop them in order
                pass_fds=self._held_fds,
            )
        child.enter("starting" if child.part.ready else "running")

    def _check_ours(self, child: _Child) -> None:
        assert child.process is not None
        code = child.process.poll()
        if code is not None:
            self._ended(child, code)
        elif child.state == "starting" and child.part.ready and child.probe_due():
            if child.part.ready():
                child.served = True
                child.enter("running")
            elif time.monotonic() - child.since > child.part.ready_timeout_s:
                raise WaitTimeoutError(
                    f"{child.part.name} was not ready in {child.part.ready_timeout_s:.0f} s"
                    + self._tail(child)
                )

    def _ended(self, child: _Child, code: int) -> None:
        self._end_orphans()
        part = child.part
        child.forgive()
        if code == 0 and part.ready is None:
            child.enter("done")
        elif child.served and part.alive and part.alive():
            self._adopt(child)
        elif child.may_restart(code):
            child.restarts += 1
            self._say(f"{part.name} {_how(code)}; restart {child.restarts} of {part.max_restarts}")
            child.enter("waiting")
        elif part.is_spare:
            self._say(f"{part.name} {_how(code)}; the run goes on without it")
            child.enter("stopped")
        else:
            times = f" after {child.restarts} restarts" if child.restarts else ""
            raise PartDiedError(f"{part.name} {_how(code)}{times}{self._tail(child)}")

    def _check_waiting(self, child: _Child) -> None:
        """Start it again after a while that doubles, unless somebody else does first."""
        if child.part.alive and child.probe_due() and child.part.alive():  # it served before
            self._adopt(child)
        elif time.monotonic() - child.since > 2 ** (child.restarts - 1):
            self._spawn(child)

    def _adopt(self, child: _Child) -> None:
        self._say(f"{child.part.name} was restarted by somebody else; watching that one")
        child.enter("adopted")

    def _check_adopted(self, child: _Child) -> None:
        assert child.part.alive is not None
        if not child.probe_due():
            return
        child.silent_probes = 0 if child.part.alive() else child.silent_probes + 1
        if child.silent_probes >= 5:
            self._ended(child, 1)

    def _stop_stage(self, stage: Sequence[_Child], hurry: Event) -> None:
        """All at once; what still loads gets no grace, for it has nothing to hand back."""
        living = [
            (child, child.process)
            for child in stage
            if child.process is not None and child.process.poll() is None
        ]
        for child, process in living:
            process.send_signal(signal.SIGQUIT if child.state == "starting" else signal.SIGTERM)
        for child, process in living:
            self._wait_end(process, child.part.grace_s, hurry)
        for child in stage:
            if child.state == "adopted":
                self._say(f"{child.part.name} was started by hand and goes on")
            elif child.state != "done":
                child.enter("stopped")

    def _wait_end(self, process: "subprocess.Popen[bytes]", grace_s: float, hurry: Event) -> None:
        """A subreaper ends a whole tree, so it gets some seconds more than its command."""
        deadline = time.monotonic() + grace_s + 10.0
        while process.poll() is None:
            if hurry.is_set():
                process.send_signal(signal.SIGQUIT)
            if time.monotonic() > deadline:
                subreaper.kill_tree(process.pid)
            time.sleep(0.05)

    def _end_orphans(self) -> None:
        """Kill what a killed subreaper left to us. Known by its session: our helpers share ours."""
        subreapers = {c.process.pid for c in self._children.values() if c.process}
        mine = os.getsid(0)
        while orphans := [
            pid
            for pid in subreaper.children(os.getpid())
            if pid not in subreapers and _session(pid) not in (mine, None)
        ]:
            for pid in orphans:
                subreaper.kill_tree(pid)
                os.waitpid(pid, 0)  # whose children are ours now: the next turn's

    def _describe(self, child: _Child) -> str:
        extra = f" ({child.restarts} restarts)" if child.restarts else ""
        return f"{child.state}{extra}"

    def _log(self, child: _Child) -> Path:
        return self._logs / f"{child.part.name}.log"

    def _tail(self, child: _Child) -> str:
        lines = self._log(child).read_text(errors="replace").splitlines()[-_TAIL_LINES:]
        return "\n".join([f". End of {self._log(child)}:", *(f"  {line}" for line in lines)])


def _how(code: int) -> str:
    """In words; a subreaper reports signal N as 128 + N."""
    number = -code if code < 0 else code - 128
    if number > 0 and number in set(signal.Signals):
        return f"was killed by {signal.Signals(number).name}"
    return f"ended with exit status {code}"


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None
