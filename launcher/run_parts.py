"""The processes of a run on one machine: their commands, ports, GPUs and cores."""

import os
import signal
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from launcher.processes import Part
from planning.placement import Placement, environment
from services.errors import SettingsError, SupersededError
from services.host.environment import environment_value
from services.host.ports import ReservedPorts
from services.http.probe import http_probe
from services.redis.client import redis_answers
from services.redis.server import own_address
from services.run_folder import RunFolder
from services.settings import Settings

MAX_RESTARTS = 3
_LOADING_S = 1800.0
"""A model of many gigabytes may come from the hub or a slow disk; a process that ends is seen at
once."""
_READING_S = 300.0
"""What Redis gets to read its append-only file."""
_LAST_STEP_S = 300.0
"""What the trainer gets to end its step and write a checkpoint. A second Ctrl-C takes it away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunParts:
    """In the order of their start."""

    redis: Part
    services: list[Part]
    """The reward service and the rollout servers."""
    trainer: Part
    monitor: Part | None = None
    """It serves the console; None where the settings turn that off."""


def run_parts(
    settings: Settings, placement: Placement, urls: list[str], trainer_options: list[str]
) -> RunParts:
    """The processes of a run.

    Args:
        settings: The run's settings, as they are in the folder's file.
        placement: The GPUs of each.
        urls: The rollout servers' addresses, as from `server_urls`.
        trainer_options: Options of `sgg-rl train`.
    """
    folder = settings.run.files
    config = folder.config
    train = sgg_rl("train", config, *trainer_options)
    no_gpu = environment((), placement=placement)
    rollouts = [
        replace(
            service_part("rollout", url, config),
            name=name,
            ready_timeout_s=_LOADING_S,
            environment=environment(gpus, placement=placement)
            | compute_threads(settings.num_rollout_gpus),
        )
        for name, url, gpus in zip(server_names(urls), urls, placement.servers, strict=True)
    ]
    reward = service_part("reward", settings.reward.url, config)
    monitor = Part(
        name="monitor",
        command=sgg_rl("serve monitor", config),
        max_restarts=MAX_RESTARTS,
        environment=no_gpu,
        is_spare=True,
    )
    return RunParts(
        monitor=monitor if settings.monitor.console else None,
        redis=Part(
            name="redis",
            command=sgg_rl("serve redis", config),
            ready=lambda: redis_answers(settings.redis),
            alive=lambda: redis_answers(settings.redis),
            max_restarts=MAX_RESTARTS,  # its append-only file keeps what it knew
            ready_timeout_s=_READING_S,
            environment=no_gpu,
        ),
        services=[replace(reward, environment=no_gpu | compute_threads()), *rollouts],
        trainer=Part(
            name="trainer",
            command=train,
            max_restarts=MAX_RESTARTS,
            again=lambda code: resumed(train, folder, code),
            progress=lambda: folder.newest_checkpoint,
            grace_s=_LAST_STEP_S,
            environment=environment(placement.trainer, placement=placement)
            | compute_threads(settings.trainer.num_ranks),
        ),
    )


def service_part(kind: Literal["reward", "rollout"], url: str, config: Path) -> Part:
    """A service that listens at an address, and comes back by itself."""
    return Part(
        name=kind,
        command=sgg_rl(f"serve {kind}", config, "--port", str(urlsplit(url).port)),
        ready=http_probe(f"{url}/readyz"),
        alive=http_probe(f"{url}/healthz", says=f"{kind} service"),
        max_restarts=MAX_RESTARTS,
    )


def sgg_rl(command: str, config: Path | None, *options: str) -> list[str]:
    """The words that run a command of this project, such as `serve redis`.

    Args:
        command: Its words.
        config: The settings' file, where it takes one.
        options: Whatever else it takes.
    """
    settings = [] if config is None else ["--config", str(config)]
    return [sys.executable, "-m", "cli.main", *command.split(), *settings, *options]


def resumed(train: list[str], folder: RunFolder, code: int) -> list[str] | None:
    """The command of a trainer that goes on; None without a checkpoint, or where it is told not to.

    Wrong settings stay wrong, a trainer that was stopped is to stay so, and a later start has the
    run.
    """
    final = (
        SettingsError.exit_code,
        SupersededError.exit_code,
        os.EX_TEMPFAIL,
        128 + signal.SIGINT,
    )
    if code in final or folder.newest_checkpoint is None:
        return None
    return train if "--resume" in train else [*train, "--resume"]


def server_names(urls: list[str]) -> list[str]:
    """Example: `["rollout"]`, or `["rollout-0", "rollout-1"]`."""
    return ["rollout"] if len(urls) == 1 else [f"rollout-{i}" for i in range(len(urls))]


def compute_threads(num_processes: int = 1) -> dict[str, str]:
    """Half of the cores for the trainer, and half for the sampler, unless the user says otherwise.

    Both work at the same time. OpenMP threads spin while they wait, so two parts that each take
    every core make one another many times slower.

    Args:
        num_processes: That share the half.
    """
    if environment_value("OMP_NUM_THREADS") is not None:
        return {}
    return {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // 2 // num_processes))}


def with_free_ports(settings: Settings, ports: ReservedPorts) -> Settings:
    """The settings with each service on this host, on a port that nobody has.

    Raises:
        SettingsError: A service's url is on another host, or Redis's is of Sentinels: then the
            parts are started one by one.
    """
    own_address(settings.redis.url)
    for name in ("redis", "reward", "rollout", *(["monitor"] * settings.monitor.console)):
        url = _on_free_port(name, getattr(settings, name).url, ports)
        settings = settings.changed(**{name: {"url": url}})
    return settings


def server_urls(settings: Settings, ports: ReservedPorts) -> list[str]:
    """Where each rollout server listens: the first at `rollout.url`, the others at free ports."""
    first = settings.rollout.url
    others = [ports.take() for _ in range(settings.cluster.num_rollout_servers - 1)]
    return [first, *(_at(first, port) for port in others)]


def _on_free_port(name: str, url: str, ports: ReservedPorts) -> str:
    place = urlsplit(url)
    if place.hostname not in ("127.0.0.1", "localhost"):
        raise SettingsError(
            f"{name}.url is {url}: the run is to be on this machine alone; use 127.0.0.1, or start "
            "the services on their hosts with `sgg-rl serve` and then `sgg-rl train`"
        )
    return _at(url, ports.take(place.port or 80))


def _at(url: str, port: int) -> str:
    return urlsplit(url)._replace(netloc=f"127.0.0.1:{port}").geturl()
