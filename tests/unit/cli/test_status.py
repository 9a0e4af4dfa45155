"""What a person sees of a run's servers."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cli.main import app
from cli.views.status import HostStatus, RunStatus, status_view
from launcher.views.terminal import SafeConsole
from services.errors import SettingsError, UnavailableError
from services.host.ports import free_port
from services.run_folder import LoggedError, RunProgress, TrainerSign
from services.schemas.weights import PolicyRecord, ServerRecord

HOST = HostStatus(
    progress=RunProgress(
        step=12, num_steps=80, reward=2.5, loss=None, num_servers=2, last_step_s=3.0, left_s=3661.0
    ),
    trainer=TrainerSign(8, "train", 12, done=False, failed=None, ago_s=300.0),
    reward=True,
    disk_free_gib=55.12,
    disk_gib=252.0,
    last_error=LoggedError("reward.log", 61.0, "reward x: no\x1b[2J room"),
)


def server(name: str, **changes: Any) -> ServerRecord:
    fields = {
        "server_id": name,
        "url": "http://nid001234:8200",
        "host": "nid001234",
        "gpu": "GPU-6a1e0f2c-77aa-11bb-22cc-334455667788",
        "state": "ready",
        "policy_version": 5,
        "tokens_per_s": 13505.4,
        "groups_done": 12800,
        "groups_in_flight": 3,
        "groups_limit": 8,
    }
    return ServerRecord.model_validate(fields | changes)


def shown(*servers: ServerRecord) -> list[str]:
    status = RunStatus(
        **dict(HOST),
        run="sgg",
        policy=PolicyRecord(policy_version=5, incarnation=1, checksum="a" * 64, transport="shm"),
        incarnation=1,
        committed_step=4,
        servers=list(servers),
        queues={"prompts": 31, "rollouts": 2, "dead": 1},
    )
    console = SafeConsole(width=80)
    with console.capture() as capture:
        console.print(status_view(status))
    return capture.get().splitlines()


def test_a_server_is_one_line_of_80_columns() -> None:
    lines = shown(server("nid001234-8200-a1b2c3"))
    assert max(map(len, lines)) <= 80
    (line,) = [line for line in lines if "nid001234" in line]
    for word in ("ready", " 5 ", "GPU-6a1e0f2c", "3/8", "13,505", "12800"):
        assert word in line


def test_a_server_of_several_gpus_is_one_line_too() -> None:
    gpus = [f"GPU-6a1e0f2c-77aa-11bb-22cc-33445566778{i}" for i in range(8)]
    lines = shown(server("nid001234-8200-a1b2c3", gpus=gpus))
    assert max(map(len, lines)) <= 80
    assert "GPU-6a1e0f2c +7" in next(line for line in lines if "nid001234" in line)


def test_who_is_behind_or_quarantined_is_said_in_words() -> None:
    lines = shown(server("late", policy_version=3), server("out", state="quarantined"))
    assert "3 of 5" in next(line for line in lines if line.startswith("late"))
    assert "quarantined" in next(line for line in lines if line.startswith("out"))


def test_an_error_has_its_age_and_no_control_characters() -> None:
    text = "\n".join(shown(server("a", last_error="gone\x1b[2J", last_error_s=2 * 3600 + 5)))
    assert "last error of a, 2 h ago: gone\\x1b[2J" in text


def test_nobody_there_is_said() -> None:
    assert "no rollout server is registered" in shown()


def test_how_the_run_is_stands_first() -> None:
    assert shown()[1:6] == [
        "step 12 of 80, 3 s ago: reward 2.500, 2 rollout servers, 1:01:01 left",
        "trainer: 8 ranks, 'train' of step 12, last sign 5 min ago",
        "reward service answers",
        "disk: 55.1 of 252.0 GiB free",
        "last error, 1 min ago, reward.log: reward x: no\\x1b[2J room",
    ]


def test_a_runs_own_file_names_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "runs" / "mine"
    run.mkdir(parents=True)
    row = {"step": 4, "policy_version": 4, "num_steps": 9, "reward_mean": 1.5, "time": time.time()}
    (run / "metrics.jsonl").write_text(json.dumps(row | {"phases_s": {"train": 30.0}}) + "\n")
    url = f"redis://127.0.0.1:{free_port()}/0"
    (run / "config.toml").write_text(
        f'[run]\nname = "mine"\nroot = "runs"\n[model]\npath = "m"\n[data]\ntrain = "d"\n'
        f'[redis]\nurl = "{url}"\n'
    )
    (tmp_path / "away").mkdir()
    for folder, words in (
        (run, ["--config", "config.toml"]),
        (tmp_path, ["--config", "runs/mine/config.toml"]),
        (tmp_path / "away", ["--config", "../runs/mine/config.toml"]),
        (tmp_path / "away", ["../runs/mine"]),
        (run, ["."]),
    ):
        monkeypatch.chdir(folder)
        done = CliRunner().invoke(app, ["status", *words])
        assert done.output.startswith("step 5 of 9, ")
    done = CliRunner().invoke(app, ["status", str(tmp_path)])
    assert isinstance(done.exception, SettingsError)
    assert done.exception.message == f"{tmp_path} is no run's folder: it has no config.toml"
    done = CliRunner().invoke(app, ["status", ".", "--config", "config.toml"])
    assert isinstance(done.exception, SettingsError)
    assert done.exception.message == "name the run's folder or --config, not both"


def test_a_run_without_redis_has_its_step_and_then_the_error(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "mine"
    run.mkdir(parents=True)
    row = {"step": 4, "policy_version": 4, "num_steps": 9, "reward_mean": 1.5, "time": time.time()}
    (run / "metrics.jsonl").write_text(json.dumps(row | {"phases_s": {"train": 30.0}}) + "\n")
    away = [
        f"redis.url=redis://127.0.0.1:{free_port()}/0",
        f"reward.url=http://127.0.0.1:{free_port()}",
    ]
    words = ["model.path=m", "data.train=d", f"run.root={run.parent}", "run.name=mine", *away]
    done = CliRunner().invoke(
        app, ["status", "--config", "demo", *(w for word in words for w in ("--set", word))]
    )
    assert isinstance(done.exception, UnavailableError)
    lines = done.output.splitlines()
    assert lines[0].startswith("step 5 of 9, ")
    assert lines[0].endswith(" ago: reward 1.500, 0:02:00 left")
    assert lines[1:3] == ["trainer: not started", "reward service does not answer"]
    done = CliRunner().invoke(
        app,
        ["status", "--json", "--config", "demo", *(w for word in words for w in ("--set", word))],
    )
    assert isinstance(done.exception, UnavailableError)
    assert json.loads(done.stdout)["progress"]["step"] == 5
