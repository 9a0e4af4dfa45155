"""Secrets are made once, whole, and for their owner alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from services.errors import SettingsError
from services.settings.secrets import ensure_secrets, read_secret

ENSURE = (
    "import sys; from pathlib import Path; from services.settings.secrets import ensure_secrets; "
)
NAMES = {"data_token", "admin_token", "redis_password"}


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_they_are_made_once_for_their_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "secrets"
    before = os.umask(0)
    try:
        files = ensure_secrets(folder)
    finally:
        os.umask(before)
    assert {path.name for path in folder.iterdir()} == NAMES, "no drafts are left"
    assert mode(folder) == 0o700
    assert {mode(path) for path in folder.iterdir()} == {0o600}
    made = {path.name: read_secret(path) for path in folder.iterdir()}
    assert len(set(made.values())) == 3
    assert all(len(secret) >= 40 for secret in made.values())
    files.admin_token.unlink()
    ensure_secrets(folder)
    assert read_secret(files.admin_token) != made["admin_token"]
    assert read_secret(files.data_token) == made["data_token"]


def test_many_processes_at_once_end_with_the_same_ones(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    code = ENSURE + "print(ensure_secrets(Path(sys.argv[1])).data_token.read_text())"
    command = [sys.executable, "-c", code, str(folder)]
    starts = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(6)]
    seen = {start.communicate()[0] for start in starts}
    assert len(seen) == 1
    assert {path.name for path in folder.iterdir()} == NAMES


@pytest.mark.parametrize("name", ["data_token", "redis_password", ""])
def test_what_others_can_read_is_refused_with_the_remedy(tmp_path: Path, name: str) -> None:
    ensure_secrets(tmp_path / "secrets")
    path = tmp_path / "secrets" / name
    path.chmod(0o640 if name else 0o755)
    with pytest.raises(SettingsError, match=f"chmod {'600' if name else '700'} {path}"):
        ensure_secrets(tmp_path / "secrets")


def test_a_secret_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    file = tmp_path / "token"
    with pytest.raises(SettingsError, match=f"{file} does not exist"):
        read_secret(file)
    file.touch(mode=0o600)
    with pytest.raises(SettingsError, match=f"{file} is empty"):
        read_secret(file)
    for text in ("two\nlines", "tab\tin it", "esc\x1b[2J"):
        file.write_text(text)
        with pytest.raises(SettingsError, match=f"{file} holds more than one line, or other"):
            read_secret(file)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match=f"{file} cannot be read"):
        read_secret(file)
    with pytest.raises(SettingsError, match="that you can write to"):
        ensure_secrets(file / "secrets")
