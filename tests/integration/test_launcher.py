"""The launcher over real processes that are killed in every way."""

import os
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from launcher.folder import run_lock
from launcher.keeper import children, is_alive
from tests.processes import wait_for

REPOSITORY = Path(__file__).parents[2]
DRIVER = Path(__file__).with_name("demo_driver.py")
DUMMY = Path(__file__).with_name("dummy_part.py")
PARTS = ("redis", "reward", "rollout", "trainer")


class Demo:
    """A launcher in a process of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / "r"
        self.launchers: list[subprocess.Popen[str]] = []

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1"}
        launcher = subprocess.Popen(
            [sys.executable, str(DRIVER), str(self.root), *arguments],
            stdout=(self.root / "out").open("w"),
            stderr=subprocess.STDOUT,
            env=environment,
            text=True,
        )
        self.launchers.append(launcher)
        return launcher

    def training(self, *arguments: str) -> "subprocess.Popen[str]":
        """A launcher whose parts all run."""
        launcher = self.start(*arguments)
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
def demo(tmp_path: Path) -> Iterator[Demo]:
    demo = Demo(tmp_path)
    yield demo
    for launcher in demo.launchers:
        launcher.kill()
        launcher.wait()
    for pid in filter(is_alive, demo.all_pids()):
        os.kill(pid, signal.SIGKILL)


def test_a_run_ends_cleanly_and_the_next_one_keeps_its_folder(demo: Demo) -> None:
    assert demo.finish(demo.training()) == 0, demo.output()
    demo.assert_nothing_left()
    assert (demo.folder / "finished").exists()
    assert "redis says hello" in (demo.folder / "logs" / "redis.log").read_text()
    assert demo.start("--resume").wait(60) == 0
    assert "nothing to resume" in demo.output()
    assert demo.start().wait(60) == 0
    assert (demo.root / "r.1" / "finished").exists()
    assert (demo.folder / "finished").exists()
    demo.assert_nothing_left()


@pytest.mark.parametrize("name", ["redis", "trainer"])
def test_the_death_of_a_critical_part_stops_all(demo: Demo, name: str) -> None:
    launcher = demo.training()
    demo.kill(name)
    assert launcher.wait(60) == 1
    assert f"{name} was killed by SIGKILL" in demo.output()
    assert f"sgg-rl demo --resume --config {demo.folder / 'config.toml'}" in demo.output()
    demo.assert_nothing_left()


def test_a_failing_trainer_is_a_failure(demo: Demo) -> None:
    assert demo.finish(demo.training(), code=7) == 1
    assert "trainer ended with exit status 7" in demo.output()
    demo.assert_nothing_left()


def test_kill_9_of_the_launcher_leaves_no_orphans_and_frees_the_name(demo: Demo) -> None:
    launcher = demo.training()
    launcher.kill()
    with run_lock(demo.folder):  # waits for the parts, refuses while they live
        assert not any(map(is_alive, demo.all_pids()))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_stops_all(demo: Demo, number: signal.Signals) -> None:
    launcher = demo.training()
    launcher.send_signal(number)
    assert launcher.wait(60) == 130
    demo.assert_nothing_left()
    assert "--resume" in demo.output()
    assert "Traceback" not in demo.output()


def test_a_part_that_ignores_sigterm_is_killed(demo: Demo) -> None:
    (demo.root / "stubborn").touch()
    launcher = demo.training()
    launcher.send_signal(signal.SIGINT)
    assert launcher.wait(60) == 130
    demo.assert_nothing_left()


def test_a_second_interrupt_takes_the_grace_away(demo: Demo) -> None:
    (demo.root / "stubborn").touch()
    launcher = demo.training("--patient")
    launcher.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert all(map(is_alive, demo.pids("redis"))), "it is stopped last, and nobody hurries yet"
    launcher.send_signal(signal.SIGINT)
    assert launcher.wait(60) == 130  # the grace of one part alone would be longer
    demo.assert_nothing_left()


def test_a_stateless_part_comes_back_without_its_old_children(demo: Demo) -> None:
    launcher = demo.training()
    first = demo.pids("reward")
    demo.kill("reward")
    wait_for("the restart", lambda: len(demo.pids("reward")) == 4)
    assert not any(map(is_alive, first))
    assert demo.finish(launcher) == 0, demo.output()
    assert "reward was killed by SIGKILL; restart 1 of 3" in demo.output()
    demo.assert_nothing_left()


def test_restarts_are_used_up(demo: Demo) -> None:
    launcher = demo.training()
    for number in range(1, 4):
        demo.kill("rollout")
        wait_for("the restart", lambda n=number: len(demo.pids("rollout")) == 2 + 2 * n)  # type: ignore[misc]
    demo.kill("rollout")
    assert launcher.wait(60) == 1
    assert "rollout was killed by SIGKILL after 3 restarts" in demo.output()
    demo.assert_nothing_left()


def test_an_instance_started_by_hand_is_watched_and_left_alone(
    demo: Demo, tmp_path_factory: pytest.TempPathFactory
) -> None:
    launcher = demo.training()
    demo.kill("reward")
    elsewhere = tmp_path_factory.mktemp("hand")
    arguments = ["reward", str(elsewhere), str(demo.port("reward"))]
    by_hand = subprocess.Popen([sys.executable, str(DUMMY), *arguments])
    try:
        wait_for("the adoption", lambda: "somebody else" in demo.output())
        assert demo.finish(launcher) == 0
        demo.assert_nothing_left()
        assert by_hand.poll() is None
    finally:
        by_hand.kill()
        by_hand.wait()
        os.kill(int((elsewhere / "reward.pids").read_text().split()[1]), signal.SIGKILL)


def test_killing_a_keeper_leaves_nothing_either(demo: Demo) -> None:
    launcher = demo.training()
    part = demo.pids("reward")
    (keeper,) = [pid for pid in children(launcher.pid) if part[0] in children(pid)]
    os.kill(keeper, signal.SIGKILL)
    wait_for("the restart", lambda: len(demo.pids("reward")) == 4)
    assert not any(map(is_alive, part))
    assert demo.finish(launcher) == 0, demo.output()
    demo.assert_nothing_left()


def test_a_part_that_cannot_start_shows_its_log(demo: Demo) -> None:
    (demo.root / "broken").touch()
    assert demo.start().wait(60) == 1
    assert "redis ended with exit status 1" in demo.output()
    assert "cannot find the model" in demo.output()


def test_a_name_is_used_by_one_run_at_a_time(demo: Demo) -> None:
    first = demo.training()
    assert demo.start().wait(60) == 1
    assert f"a run named r is going on in {demo.folder} (process {first.pid})" in demo.output()
    assert demo.finish(first) == 0
