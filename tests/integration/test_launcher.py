"""The launcher over real processes that are killed in every way."""

import fcntl
import os
import signal
import subprocess
import sys
import termios
import time
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from launcher.folder import run_lock
from launcher.subreaper import children, is_alive
from tests.processes import wait_for

REPOSITORY = Path(__file__).parents[2]
DRIVER = Path(__file__).with_name("run_driver.py")
DUMMY = Path(__file__).with_name("dummy_part.py")
PARTS = ("redis", "reward", "rollout", "trainer")


class Run:
    """A launcher in a process of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / "r"
        self.launchers: list[subprocess.Popen[str]] = []

    def start(
        self, *arguments: str, before: Sequence[str] = (), terminal: int | None = None
    ) -> "subprocess.Popen[str]":
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1"}
        launcher = subprocess.Popen(
            [*before, sys.executable, str(DRIVER), str(self.root), *arguments],
            stdin=terminal,
            stdout=(self.root / "out").open("w") if terminal is None else terminal,
            stderr=subprocess.STDOUT,
            start_new_session=terminal is not None,
            preexec_fn=None if terminal is None else lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
            env=environment,
            text=True,
        )
        self.launchers.append(launcher)
        return launcher

    def training(self, *arguments: str, **how: Any) -> "subprocess.Popen[str]":
        """A launcher whose parts all run."""
        launcher = self.start(*arguments, **how)
        wait_for("the trainer", lambda: bool(self.pids("trainer")) or launcher.poll() is not None)
        assert launcher.poll() is None, self.output()
        return launcher

    def output(self) -> str:
        return (self.root / "out").read_text()

    def pids(self, name: str) -> list[int]:
        """Own and child's pid of every start of a part."""
        file = self.root / f"{name}.pids"
        return [int(word) for word in file.read_text().split()] if file.exists() else []

    def all_pids(self) -> list[int]:
        return [pid for name in PARTS for pid in self.pids(name)]

    def kill(self, name: str) -> None:
        os.kill(self.pids(name)[-2], signal.SIGKILL)

    def finish(self, launcher: "subprocess.Popen[str]", code: int = 0) -> int:
        (self.root / "trainer.exit").write_text(str(code))
        return launcher.wait(60)

    def port(self, name: str) -> int:
        tree = tomllib.loads((self.folder / "config.toml").read_text())
        return urlsplit(tree[name]["url"]).port or 0

    def assert_nothing_left(self) -> None:
        assert self.all_pids()
        wait_for("the end of all", lambda: not any(map(is_alive, self.all_pids())), 30)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    run = Run(tmp_path)
    yield run
    for launcher in run.launchers:
        launcher.kill()
        launcher.wait()
    for pid in filter(is_alive, run.all_pids()):
        os.kill(pid, signal.SIGKILL)


def test_a_run_ends_cleanly_and_the_next_one_keeps_its_folder(run: Run) -> None:
    assert run.finish(run.training()) == 0, run.output()
    run.assert_nothing_left()
    assert (run.folder / "finished").exists()
    assert "redis says hello" in (run.folder / "logs" / "redis.log").read_text()
    assert run.start("--resume").wait(60) == 0
    assert "nothing to resume" in run.output()
    assert run.start().wait(60) == 0
    assert (run.root / "r.1" / "finished").exists()
    assert (run.folder / "finished").exists()
    run.assert_nothing_left()


def test_the_death_of_a_trainer_without_a_checkpoint_stops_all(run: Run) -> None:
    launcher = run.training()
    run.kill("trainer")
    assert launcher.wait(60) == 1
    assert "trainer was killed by SIGKILL" in run.output()
    assert f"sgg-rl run --resume --config {run.folder / 'config.toml'}" in run.output()
    run.assert_nothing_left()


def test_a_failing_trainer_is_a_failure(run: Run) -> None:
    assert run.finish(run.training(), code=7) == 1
    assert "trainer ended with exit status 7" in run.output()
    run.assert_nothing_left()


def test_kill_9_of_the_launcher_leaves_no_orphans_and_frees_the_name(run: Run) -> None:
    launcher = run.training()
    launcher.kill()
    with run_lock(run.folder):  # waits for the parts, refuses while they live
        assert not any(map(is_alive, run.all_pids()))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_stops_all(run: Run, number: signal.Signals) -> None:
    launcher = run.training()
    launcher.send_signal(number)
    assert launcher.wait(60) == 130
    run.assert_nothing_left()
    assert "stopping all parts; Ctrl-C again stops them at once" in run.output()
    assert "--resume" in run.output()
    assert "Traceback" not in run.output()


def test_a_closed_terminal_stops_all(run: Run) -> None:
    ours, theirs = os.openpty()
    launcher = run.training(terminal=theirs)
    os.close(theirs)
    os.close(ours)
    assert launcher.wait(60) == 130
    run.assert_nothing_left()


def test_nohup_outlives_its_terminal(run: Run) -> None:
    launcher = run.training(before=["nohup"])
    launcher.send_signal(signal.SIGHUP)
    assert run.finish(launcher) == 0, run.output()


def test_an_interrupt_waits_for_nobody_who_is_still_loading(run: Run) -> None:
    """As vLLM does, it ignores SIGTERM."""
    (run.root / "loading").touch()
    launcher = run.start("--patient")
    wait_for("the server", lambda: run.pids("rollout"))
    launcher.send_signal(signal.SIGINT)
    assert launcher.wait(60) == 130  # its grace is far longer
    run.assert_nothing_left()


def test_a_part_that_ignores_sigterm_is_killed(run: Run) -> None:
    (run.root / "stubborn").touch()
    launcher = run.training()
    launcher.send_signal(signal.SIGINT)
    assert launcher.wait(60) == 130
    run.assert_nothing_left()


def test_a_second_interrupt_takes_the_grace_away(run: Run) -> None:
    (run.root / "stubborn").touch()
    launcher = run.training("--patient")
    launcher.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert all(map(is_alive, run.pids("redis"))), "it is stopped last, and nobody hurries yet"
    launcher.send_signal(signal.SIGINT)
    assert launcher.wait(60) == 130  # the grace of one part alone would be longer
    run.assert_nothing_left()


def test_a_stateless_part_comes_back_without_its_old_children(run: Run) -> None:
    launcher = run.training()
    first = run.pids("reward")
    run.kill("reward")
    wait_for("the restart", lambda: len(run.pids("reward")) == 4)
    assert not any(map(is_alive, first))
    assert run.finish(launcher) == 0, run.output()
    assert "reward was killed by SIGKILL; restart 1 of 3" in run.output()
    run.assert_nothing_left()


def test_redis_comes_back(run: Run) -> None:
    launcher = run.training()
    run.kill("redis")
    wait_for("the restart", lambda: len(run.pids("redis")) == 4)
    assert run.finish(launcher) == 0, run.output()
    assert "redis was killed by SIGKILL; restart 1 of 3" in run.output()


def test_a_trainer_with_a_checkpoint_resumes_and_a_later_one_gives_it_its_restarts_again(
    run: Run,
) -> None:
    launcher = run.training()
    for number, step in ((1, 10), (2, 10), (3, 20), (4, 20)):
        (run.folder / f"checkpoints/step-{step:06d}").mkdir(parents=True, exist_ok=True)
        run.kill("trainer")
        wait_for("the restart", lambda n=number: len(run.pids("trainer")) == 2 + 2 * n)  # type: ignore[misc]
        wait_for("its arguments", (run.root / "trainer.resumed").exists)
    found = [line[-14:] for line in run.output().splitlines() if "; restart" in line]
    assert found == [f"restart {n} of 3" for n in (1, 2, 1, 2)]
    assert run.finish(launcher) == 0, run.output()


@pytest.mark.parametrize("code", [2, 3, 75])
def test_a_trainer_that_must_not_go_on_is_not_started_again(run: Run, code: int) -> None:
    """Wrong settings, another start that has taken the run over, a stop that somebody asked for."""
    launcher = run.training()
    (run.folder / "checkpoints/step-000010").mkdir(parents=True)
    assert run.finish(launcher, code) == 1
    assert len(run.pids("trainer")) == 2
    assert f"trainer ended with exit status {code}" in run.output()


def test_restarts_are_used_up(run: Run) -> None:
    launcher = run.training()
    for number in range(1, 4):
        run.kill("rollout")
        wait_for("the restart", lambda n=number: len(run.pids("rollout")) == 2 + 2 * n)  # type: ignore[misc]
    run.kill("rollout")
    assert launcher.wait(60) == 1
    assert "rollout was killed by SIGKILL after 3 restarts" in run.output()
    run.assert_nothing_left()


def test_an_instance_started_by_hand_is_watched_and_left_alone(
    run: Run, tmp_path_factory: pytest.TempPathFactory
) -> None:
    launcher = run.training()
    run.kill("reward")
    elsewhere = tmp_path_factory.mktemp("hand")
    arguments = ["reward", str(elsewhere), str(run.port("reward"))]
    by_hand = subprocess.Popen([sys.executable, str(DUMMY), *arguments])
    try:
        wait_for("the adoption", lambda: "somebody else" in run.output())
        assert run.finish(launcher) == 0
        run.assert_nothing_left()
        assert by_hand.poll() is None
    finally:
        by_hand.kill()
        by_hand.wait()
        os.kill(int((elsewhere / "reward.pids").read_text().split()[1]), signal.SIGKILL)


def test_killing_a_keeper_leaves_nothing_either(run: Run) -> None:
    launcher = run.training()
    part = run.pids("reward")
    (subreaper,) = [pid for pid in children(launcher.pid) if part[0] in children(pid)]
    os.kill(subreaper, signal.SIGKILL)
    wait_for("the restart", lambda: len(run.pids("reward")) == 4)
    assert not any(map(is_alive, part))
    assert run.finish(launcher) == 0, run.output()
    run.assert_nothing_left()


def test_a_part_that_cannot_start_shows_its_log(run: Run) -> None:
    (run.root / "broken").touch()
    assert run.start().wait(60) == 1
    assert "redis ended with exit status 1" in run.output()
    assert "cannot find the model" in run.output()


def test_a_name_is_used_by_one_run_at_a_time(run: Run) -> None:
    first = run.training()
    assert run.start().wait(60) == 1
    assert f"a run named r is going on in {run.folder} (process {first.pid})" in run.output()
    assert run.finish(first) == 0
