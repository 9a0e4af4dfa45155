"""The run's folder and its lock; ports of the demo."""

import socket
from pathlib import Path

import pytest

from launcher import folder as folder_module
from launcher.folder import prepare_folder, run_lock
from launcher.run_parts import with_free_ports
from services.errors import ConflictError, NotFoundError, SettingsError
from services.host.ports import ReservedPorts
from services.run_folder import RunFolder
from services.settings import (
    DataSettings,
    ModelSettings,
    RedisSettings,
    RewardSettings,
    RolloutSettings,
    Settings,
)


def settings(**sections: object) -> Settings:
    return Settings.model_validate(
        {"model": ModelSettings(path="m"), "data": DataSettings(train="d")} | sections
    )


def test_finished_runs_are_moved_away_one_by_one(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    assert prepare_folder(folder, resume=False) is None
    for number in (1, 2):
        folder.metrics.write_text("{}\n")
        folder.finished.touch()
        assert prepare_folder(folder, resume=False) == tmp_path / f"run.{number}"
        assert not folder.finished.exists()
        assert (tmp_path / f"run.{number}" / "metrics.jsonl").exists()


def test_an_unfinished_run_is_resumed_or_kept_aside(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    prepare_folder(folder, resume=False)
    folder.config.write_text("a = 1")
    folder.metrics.write_text("{}\n")
    assert prepare_folder(folder, resume=True) is None
    assert folder.metrics.exists()
    assert prepare_folder(folder, resume=False) == tmp_path / "run.1"
    assert (tmp_path / "run.1" / "metrics.jsonl").exists()


def test_a_run_that_never_trained_starts_over(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    prepare_folder(folder, resume=False)
    folder.config.write_text("a = 1")
    assert prepare_folder(folder, resume=False) == tmp_path / "run.1"


def test_without_a_run_there_is_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="without --resume"):
        prepare_folder(RunFolder(tmp_path / "run"), resume=True)


def test_a_name_is_locked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_module, "_DYING_S", 0.0)
    with run_lock(tmp_path / "run"):
        with pytest.raises(ConflictError, match="run is going on"), run_lock(tmp_path / "run"):
            pass
        with run_lock(tmp_path / "other"):
            pass
    with run_lock(tmp_path / "run"):
        pass


def test_taken_ports_are_replaced_and_free_ones_kept() -> None:
    with socket.socket() as taken, socket.socket() as free:
        for sock in (taken, free):
            sock.bind(("127.0.0.1", 0))
        taken.listen()
        busy, idle = taken.getsockname()[1], free.getsockname()[1]
        free.close()
        before = settings(
            redis=RedisSettings(url=f"redis://127.0.0.1:{busy}/3"),
            reward=RewardSettings(url=f"http://localhost:{idle}"),
            rollout=RolloutSettings(url=f"http://127.0.0.1:{busy}"),
        )
        with ReservedPorts() as ports:
            after = with_free_ports(before, ports)
    assert after.redis.url.startswith("redis://127.0.0.1:")
    assert after.redis.url.endswith("/3")
    assert str(busy) not in after.redis.url
    assert str(busy) not in after.rollout.url
    assert after.reward.url == f"http://127.0.0.1:{idle}"
    assert after.redis.lease_s == before.redis.lease_s


def test_services_on_other_hosts_are_refused() -> None:
    elsewhere = settings(reward=RewardSettings(url="http://node7:8100"))
    with ReservedPorts() as ports, pytest.raises(SettingsError, match=r"reward\.url"):
        with_free_ports(elsewhere, ports)
