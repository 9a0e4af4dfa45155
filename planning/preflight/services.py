"""A run's services and secrets: which answer, which ports are taken by others."""

import asyncio
import socket
from contextlib import suppress
from functools import partial
from urllib.parse import urlsplit

from planning.preflight.check import CheckResult, check
from services.errors import SettingsError, SggError, UnavailableError
from services.host.addresses import is_loopback
from services.host.environment import environment_value
from services.host.ports import addresses_of, holder_of, is_listening
from services.http.probe import http_probe
from services.redis.check import redis_facts
from services.redis.client import connect, without_password
from services.redis.keys import RunKeys
from services.redis.registry import Registry, RunOwner, open_registry
from services.schemas.weights import ServerRecord
from services.settings import Settings
from services.settings.secrets import read_secret, read_token

TOKEN_VARIABLES = ("SGG_DATA_TOKEN", "SGG_ADMIN_TOKEN")
"""Each stands over the file that the settings name."""


def service_checks(settings: Settings) -> tuple[list[CheckResult], list[ServerRecord]]:
    """Check Redis, the reward service and rollout servers; one that is not started is no fault.

    Returns:
        What was found, and the run's rollout servers; none where Redis does not answer.
    """
    found, servers = asyncio.run(_redis(settings))
    for name, url in (("reward", settings.reward.url), ("rollout", settings.rollout.url)):
        found.append(_service(name, url))
    known = [server for server in servers if server.url != settings.rollout.url]
    found += [_service(f"rollout {server.server_id}", server.url) for server in known]
    return found, servers


def secret_checks(settings: Settings) -> list[CheckResult]:
    """Check the files that `[security]` and `[redis]` name, and those that must be named."""
    security = settings.security
    tokens = {
        "security.data_token_file": (security.data_token_file, TOKEN_VARIABLES[0]),
        "security.admin_token_file": (security.admin_token_file, TOKEN_VARIABLES[1]),
    }
    files = {name: file for name, (file, _) in tokens.items()}
    files["redis.password_file"] = settings.redis.password_file
    found = [
        check(name, partial(read_secret, file), ok=str(file))
        for name, file in files.items()
        if file
    ]
    urls = (settings.reward.url, settings.rollout.url)
    beyond = [url for url in urls if not is_loopback(urlsplit(url).hostname or "")]
    unset = [
        name
        for name, (file, variable) in tokens.items()
        if file is None and environment_value(variable) is None
    ]
    if beyond and unset:
        detail = (
            f"{beyond[0]} is beyond this machine: set {' and '.join(unset)} to files of mode 0600 "
            "with one line each"
        )
        found.append(CheckResult("tokens", "missing", detail))
    return found


def token_checks() -> list[CheckResult]:
    """Check the variables that hold tokens, where they are set: an empty one is refused."""
    return [
        check(name, partial(read_token, name, None), ok="set")
        for name in TOKEN_VARIABLES
        if environment_value(name) is not None
    ]


def num_hosts(settings: Settings) -> int:
    """How many the urls of the settings name; those of this machine count as one."""
    urls = (settings.redis.url, settings.reward.url, settings.rollout.url)
    hosts = {urlsplit(url).hostname or "" for url in urls}
    return 1 + len({host for host in hosts if not is_of_this_machine(host)})


def is_of_this_machine(host: str) -> bool:
    """Whether a socket here can be bound to it."""
    try:
        with socket.create_server((addresses_of(host)[0], 0)):
            return True
    except (OSError, SettingsError):
        return False


def check_run_name(settings: Settings) -> None:
    """Refuse a trainer that its Redis would refuse once its model is loaded.

    A Redis that does not answer yet is waited for later.

    Raises:
        SettingsError: The run's name is another folder's there, or it refuses this client.
    """

    async def ask() -> None:
        async with open_registry(settings) as registry:
            await registry.check_name(RunOwner.of(settings.run.files))

    with suppress(UnavailableError):
        asyncio.run(ask())


async def _redis(settings: Settings) -> tuple[list[CheckResult], list[ServerRecord]]:
    url = without_password(settings.redis.url)
    try:
        client = connect(settings.redis)
        try:
            facts = await redis_facts(client)
            if facts.problem is not None:
                return [CheckResult("redis server", "missing", facts.problem)], []
            registry = Registry(client, RunKeys(settings.run.name))
            await registry.check_name(RunOwner.of(settings.run.files))
            servers = await registry.servers(starting=True)
        finally:
            await client.aclose()
    except UnavailableError as error:
        if urlsplit(url).scheme != "redis":  # several hosts, or none
            return [CheckResult("redis server", "info", error.message)], []
        return [_silent("redis server", url)], []
    except SggError as error:
        return [CheckResult("redis server", "missing", error.message)], []
    found = CheckResult("redis server", "ok", f"{url} answers, version {facts.version}")
    return [
        found,
        *(CheckResult("redis server", "warning", text) for text in facts.warnings),
    ], servers


def _service(name: str, url: str) -> CheckResult:
    kind = name.partition(" ")[0]
    if not http_probe(f"{url}/healthz", says=f"{kind} service")():
        return _silent(name, url)
    ready = http_probe(f"{url}/readyz")()
    return CheckResult(
        name, "ok" if ready else "info", f"{url} {'is ready' if ready else 'starts'}"
    )


def _silent(name: str, url: str) -> CheckResult:
    """Nobody has answered as the service would: not started, or another one has its port."""
    place = urlsplit(url)
    host, port = place.hostname or "", place.port or 80
    if is_of_this_machine(host) and is_listening(port):
        detail = (
            f"{holder_of(port)} has the port of {url}, and is not this service: stop it, or choose "
            "another port"
        )
        return CheckResult(name, "missing", detail)
    return CheckResult(name, "info", f"not started: nobody answers at {url}")
