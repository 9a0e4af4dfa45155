"""Tokens and passwords, in files that their owner alone can read.

They are never on a command line, which every user of a host can see, in a log or in settings, which
are printed, dumped for other processes and sent to trackers.
"""

import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from services.errors import SettingsError
from services.host.environment import environment_value

MIN_CHARACTERS = 16
"""The least length of a secret that is asked for beyond this machine."""
_NUM_BYTES = 32
_OTHERS = 0o077
"""The mode's bits for group and others."""
_REDIS_SCHEMES = ("redis://", "rediss://", "unix://", "redis+sentinel://")


@dataclass(frozen=True, slots=True)
class SecretFiles:
    """A run's secrets; their names are those of the settings without `_file`."""

    data_token: Path
    """For `security.data_token_file`."""
    admin_token: Path
    """For `security.admin_token_file`."""
    redis_password: Path
    """For `redis.password_file`."""


def ensure_secrets(folder: Path) -> SecretFiles:
    """Make what is missing of a run's secrets; what is there stays.

    Two processes that do this at the same time end with the same secrets.

    Args:
        folder: A folder for secrets alone, such as `<run folder>/secrets`; made with mode 0700.

    Raises:
        SettingsError: The folder cannot be written, or others can read it or what is in it.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _refuse_if_open(folder, "700")
        names = SecretFiles.__dataclass_fields__
        return SecretFiles(**{name: _ensure(folder / name) for name in names})
    except OSError as error:
        raise SettingsError(
            f"the secrets in {folder} cannot be made: {error.strerror} ({error.filename}); choose "
            "a run.root that you can write to"
        ) from error


def read_secret(file: Path) -> str:
    """A secret file's content, without white space around it.

    Raises:
        SettingsError: It is not there, not readable, empty, more than one line, or readable by
            others.
    """
    try:
        _refuse_if_open(file, "600")
        secret = file.read_text().strip()
    except FileNotFoundError as error:
        raise SettingsError(f"secret file {file} does not exist") from error
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"secret file {file} cannot be read: {error}") from error
    if not secret:
        raise SettingsError(f"secret file {file} is empty: write one line into it")
    return checked_secret(secret, f"secret file {file}")


def read_token(environment_name: str, file: Path | None) -> str | None:
    """A token from the environment, else from a file; None when neither is named.

    Raises:
        SettingsError: The variable is set and empty, or the file cannot be used: it must never be
            taken for the wish to have no token.
    """
    token = environment_value(environment_name)
    if token is None:
        return None if file is None else read_secret(file)
    if not token.strip():
        raise SettingsError(
            f"the environment variable {environment_name} is set and empty: give it the token, or "
            "unset it to have none"
        )
    return checked_secret(token.strip(), f"the environment variable {environment_name}")


def is_weak(secret: str) -> bool:
    """Whether it is too short to be asked for beyond this machine."""
    return len(secret) < MIN_CHARACTERS


def checked_secret(secret: str, where: str) -> str:
    """A secret that fits into an HTTP header, and into a line of Redis's configuration.

    Raises:
        SettingsError: It does not; `where` says where it stood.
    """
    if not (secret.isascii() and secret.isprintable()):
        raise SettingsError(
            f"{where} holds more than one line, or other characters than printable ASCII: make it "
            "with `openssl rand -base64 32`"
        )
    return secret


def refuse_redis_password(url: str) -> None:
    """Raises: ValueError: `redis.url` holds a password, or is not an url of Redis."""
    if not url.startswith(_REDIS_SCHEMES):
        raise ValueError(f"redis.url has to begin with {', '.join(_REDIS_SCHEMES)}")
    if _holds_password(url):
        raise ValueError(
            "redis.url holds a password, which would stand in config.toml, logs and trackers: put "
            "it into a file of mode 0600 and name that in redis.password_file; a user stays in the "
            "url"
        )


def refuse_password(name: str, url: str) -> None:
    """Raises: ValueError: The setting `name` holds a user or password, or is not an url."""
    if any(character in url for character in "@?#"):
        raise ValueError(
            f"{name} holds a user, password, query or fragment, which would stand in "
            "config.toml, logs and trackers: write http://host:port. Tokens of services go "
            "into [security], a collector's into OTEL_EXPORTER_OTLP_HEADERS"
        )
    try:
        urlsplit(url)
    except ValueError as error:
        raise ValueError(f"{name} is no url ({error}): write http://host:port") from error


def _holds_password(redis_url: str) -> bool:
    """Whether redis-py would find one in it, or a mistyped url has left one there."""
    parts = urlsplit(redis_url)
    names = [name.lower() for name, _ in parse_qsl(parts.query, keep_blank_values=True)]
    return (
        parts.password is not None
        or ":" in unquote(parts.username or "")
        or any("pass" in name for name in names)
        or "@" in parts.path
        or bool(parts.fragment)
    )


def _ensure(file: Path) -> Path:
    if not file.exists():
        _make(file)
    read_secret(file)
    return file


def _make(file: Path) -> None:
    """Under another name first: nobody ever reads a half of it. The first to link it wins."""
    draft = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as handle:
            handle.write(secrets.token_urlsafe(_NUM_BYTES) + "\n")
            handle.flush()
            os.fsync(handle.fileno())
        try:
            file.hardlink_to(draft)
        except FileExistsError:
            return  # made by another process meanwhile
    finally:
        draft.unlink()


def _refuse_if_open(path: Path, mode: str) -> None:
    found = path.stat().st_mode & 0o777
    if found & _OTHERS:
        raise SettingsError(
            f"{path} has mode {found:o}, so others may read it: `chmod {mode} {path}`, and change "
            "the secret where they can be on this machine"
        )
