"""`sgg-rl serve`: one service in the foreground."""

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.options import Config, Overrides
from cli.settings import run_settings, service_settings
from services.errors import SettingsError
from services.host.imports import many_imports

if TYPE_CHECKING:
    from fastapi import FastAPI

    from services.settings import Settings

logger = logging.getLogger(__name__)

serve_app = typer.Typer(help="Run one service in the foreground.", no_args_is_help=True)

Host = Annotated[str | None, typer.Option(help="Bind here instead of the host in the settings.")]
Port = Annotated[int | None, typer.Option(min=1, max=65535, help="Instead of the settings' port.")]


@serve_app.command("redis")
def redis(
    config: Config = None, set_: Overrides = None, host: Host = None, port: Port = None
) -> None:
    """Redis or Valkey, with its data in the run's folder.

    Example: sgg-rl serve redis --config run.toml
    """
    serve_redis(service_settings(config, set_, redis=(host, port)))


@serve_app.command("reward")
def reward(
    config: Config = None,
    set_: Overrides = None,
    host: Host = None,
    port: Port = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; each scores on one core.")
    ] = None,
) -> None:
    """The reward service; by itself it needs no settings.

    Example: sgg-rl serve reward --port 8100
    """
    with many_imports():
        from reward_service.service.app import serve
        from services.telemetry import setup_logging

    overrides = [*(set_ or []), *([f"reward.workers={workers}"] if workers else [])]
    settings = service_settings(config, overrides, reward=(host, port))
    setup_logging("reward")
    serve(settings)


@serve_app.command("rollout")
def rollout(
    config: Config = None, set_: Overrides = None, host: Host = None, port: Port = None
) -> None:
    """A rollout server.

    Example: sgg-rl serve rollout --config run.toml
    """
    serve_rollout(run_settings(config, set_, rollout=(host, port)))


@serve_app.command("monitor")
def monitor(
    config: Config = None, set_: Overrides = None, host: Host = None, port: Port = None
) -> None:
    """Metrics of the whole run for Prometheus, and the console for people.

    Example: sgg-rl serve monitor --config run.toml
    """
    from services.telemetry import setup_logging

    settings = service_settings(config, set_, monitor=(host, port))
    setup_logging("monitor")
    serve_monitor(settings)


def serve_redis(settings: "Settings") -> None:
    """Become the Redis server."""
    from planning.preflight.folders import check_run_folder
    from services.redis.server import listening_addresses, own_address, redis_server_command

    host, port = own_address(settings.redis.url)
    password = settings.redis.password
    addresses = listening_addresses(host, port, password=password)
    folder = settings.run.files.redis
    check_run_folder(folder)
    command = redis_server_command(folder, port, addresses=addresses, password=password)
    os.execv(command[0], command)


def serve_monitor(settings: "Settings") -> None:
    """Serve the run's numbers, and the pages of all runs beside it unless it is told not to."""
    from services.http.app import serve

    serve(monitor_app(settings), settings.monitor.url)


def monitor_app(settings: "Settings") -> "FastAPI":
    """What `serve_monitor` serves."""
    with many_imports():
        from monitor_service.app import Monitor

    if not settings.monitor.console:
        return Monitor(settings).app
    from console.app import BODY_LIMIT_BYTES, add_console, admin_paths

    data, admin = settings.data_token, settings.admin_token
    app = Monitor(settings, BODY_LIMIT_BYTES, admin_paths(data, admin)).app
    add_console(app, settings.run.root, settings, data_token=data, admin_token=admin)
    return app


def serve_rollout(settings: "Settings") -> None:
    """Run a rollout server, once its model and its machine are checked."""
    from planning.preflight.bare import check_start
    from planning.preflight.folders import check_run_folder, is_read_only
    from planning.preflight.gpus import check_gpus

    if settings.rollout.engine == "vllm":
        from planning.preflight.inputs import checked_model

        settings = checked_model(settings)
        check_start("/dev/shm", "caches")
        check_gpus(settings.rollout.tensor_parallel_size, who="a rollout server")
    with many_imports():
        from rollout_service.http.app import serve
        from services.host.addresses import host_and_port
        from services.telemetry import own_terminal

    _, port = host_and_port(settings.rollout.url)
    log: Path | None = settings.run.files.logs / f"rollout-{port}.log"
    try:
        check_run_folder(settings.run.folder)
        unwritable = None
    except SettingsError as error:  # it only reads there where it shares the folder
        log, unwritable = None, error
    with own_terminal("rollout", log):
        if unwritable and not is_read_only(settings.run.root):
            logger.warning("images from other hosts cannot be kept: %s", unwritable)
        serve(settings)
