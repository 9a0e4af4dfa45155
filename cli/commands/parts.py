"""What each command runs. Only names and printing: the work is in the packages."""

import asyncio
import logging
import os
import stat
import sys
from collections.abc import Callable, Coroutine
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from cli.views.safe_text import safe
from services.errors import NotFoundError, SettingsError, SggError
from services.http.app import host_and_port
from services.models.families import with_box_space
from services.redis.keys import RunKeys
from services.settings import (
    Settings,
    dump_settings,
    environment_value,
    load_settings,
    start_command,
)
from services.telemetry import setup_logging
from trainer.ranks.stop import EXIT_STOPPED, stop_request

if TYPE_CHECKING:
    from planning.preflight.inputs import Job
    from scene_data.tiny_model import Family
    from trainer.records.evaluation import StepEvaluation

logger = logging.getLogger(__name__)

DEFAULT_CONFIG = Path("configs/demo.toml")
DATA_CONFIG = Path("configs/demo-data.toml")
"""The demo's on a user's data."""
T = TypeVar("T")
Address = tuple[str | None, int | None]


def settings(
    config: list[Path] | None, overrides: list[str] | None, **addresses: Address
) -> Settings:
    """The run's settings, with `--host` and `--port` put into the section's url."""
    files = config or [DEFAULT_CONFIG]
    found = load_settings(files, overrides or [])
    for section, (host, port) in addresses.items():
        if host is None and port is None:
            continue
        url = getattr(found, section).url
        scheme, _, rest = url.partition("://")
        old_host, old_port = host_and_port(url.replace("redis://", "http://"))
        path = rest.partition("/")[2]
        changed = f"{scheme}://{host or old_host}:{port or old_port}" + (f"/{path}" if path else "")
        found = load_settings(files, [*(overrides or []), f'{section}.url="{changed}"'])
    return found


def demo_settings(
    config: list[Path] | None, overrides: list[str] | None, data: str | None
) -> Settings:
    """The demo's settings; held-out set, instruction and pixels follow its data."""
    if data is None:
        return settings(config, overrides)
    from launcher.demo_data import data_overrides

    files = config or [DATA_CONFIG]
    return settings(files, [*data_overrides(files, overrides or [], data), *(overrides or [])])


def serve_redis(found: Settings) -> None:
    """Become the Redis server."""
    from planning.preflight.folders import check_run_folder
    from services.redis.server import listening_addresses, own_address, redis_server_command

    host, port = own_address(found.redis.url)
    password = found.redis.password
    addresses = listening_addresses(host, port, password=password)
    folder = found.run.files.redis
    check_run_folder(folder)
    command = redis_server_command(folder, port, addresses=addresses, password=password)
    os.execv(command[0], command)


def serve_reward(found: Settings) -> None:
    """Run the reward service."""
    from reward_service.service.app import serve

    setup_logging("reward")
    serve(found)


def serve_rollout(found: Settings) -> None:
    """Run a rollout server."""
    from planning.preflight.bare import check_start
    from planning.preflight.folders import check_run_folder, is_read_only
    from planning.preflight.gpus import check_gpus

    if found.rollout.engine == "vllm":
        from planning.preflight.inputs import checked_model

        found = checked_model(found)
        check_start("/dev/shm", "caches")
        check_gpus(1, who="a rollout server")
    from rollout_service.http.app import serve

    setup_logging("rollout")
    try:
        check_run_folder(found.run.folder)
    except SettingsError as error:  # it only reads there where it shares the folder
        if not is_read_only(found.run.root):
            logger.warning("images from other hosts cannot be kept: %s", error)
    serve(found)


def serve_monitor(found: Settings) -> None:
    """Run the monitor."""
    from monitor_service.app import serve

    setup_logging("monitor")
    serve(found)


def train(found: Settings, *, resume: bool, allow_changes: bool, dry_run: bool) -> None:
    """Run the trainer: this process, or as many as `trainer.num_ranks` below it."""
    if dry_run:
        from planning.dry_run import dry_run as check

        print(check(found))
        return
    from planning.preflight.trainer import check_trainer

    with stop_request():  # which ends the process at once: nothing is done yet
        check_trainer(found)
        found = _checked(found, "train")
    rank = _rank_of(found)
    setup_logging(f"trainer[{rank}]", beside=_own_log(found, rank))
    if rank == 0:
        _keep_settings(found)
    with stop_request() as stop:
        from cli.views.progress import shown
        from trainer.train import train as run_training

        with shown(found) if rank == 0 else nullcontext():
            is_done = run_training(
                found,
                resume=resume,
                allow_changes=allow_changes,
                evaluation=_evaluation(found, rank),
                stop=stop,
            )
    if not is_done:
        _stopped(rank)
    if rank == 0:
        _leave_results(found)


def _keep_settings(found: Settings) -> None:
    """Write `config.toml`, unless a start by the one that is there would be the same."""
    file = found.run.files.config
    with suppress(SettingsError):
        if file.exists() and load_settings([file]) == found:
            return
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_suffix(".draft")
    draft.write_text(dump_settings(found))
    draft.replace(file)


def _own_log(found: Settings, rank: int) -> Path | None:
    """Beside stderr, where nobody keeps that in a file: neither the launcher nor a Slurm job."""
    if environment_value("SGG_JOB_FOLDER") or stat.S_ISREG(os.fstat(2).st_mode):
        return None
    logs = found.run.files.logs
    logs.mkdir(parents=True, exist_ok=True)
    return logs / f"trainer-{rank}.log"


def _leave_results(found: Settings) -> None:
    """A run whose pictures cannot be drawn is done all the same."""
    from evaluation.of_a_run.results import write_run_results

    try:
        for file in write_run_results(found):
            logger.info("wrote %s", file)
    except (OSError, SggError) as error:
        logger.warning("no report: %s", error)


def _evaluation(found: Settings, rank: int) -> "StepEvaluation | None":
    if rank or not (found.evaluation.every or found.data.heldout):
        return None
    from evaluation.of_a_run.during import DuringTraining

    return DuringTraining(found)


def sft(found: Settings, *, resume: bool, allow_changes: bool) -> None:
    """Run supervised fine-tuning, on as many processes as the trainer's."""
    from planning.preflight.trainer import check_trainer

    with stop_request():
        check_trainer(found)
        found = _checked(found, "sft")
    rank = _rank_of(found)
    setup_logging(f"sft[{rank}]")
    with stop_request() as stop:
        from trainer.sft.train import run_sft

        folder = run_sft(found, resume=resume, allow_changes=allow_changes, stop=stop)
    if folder is None:
        _stopped(rank)
    elif rank == 0:
        print(f"wrote {folder}")


def _checked(found: Settings, job: "Job") -> Settings:
    """The settings with `box_space` decided; one process of all looks at what the run reads."""
    if environment_value("RANK") not in (None, "0"):
        return with_box_space(found)
    from planning.preflight.inputs import checked

    return checked(found, job)


def _stopped(rank: int) -> NoReturn:
    """End at once: Python takes seconds of computing to take itself apart, for nothing."""
    if rank == 0:
        go_on = start_command("--resume")
        print(f"sgg-rl: stopped with a checkpoint: go on with `{go_on}`", file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # the terminal may be gone
            stream.flush()
    os._exit(EXIT_STOPPED)


def _rank_of(found: Settings) -> int:
    """This process among `trainer.num_ranks`; alone it starts them all and ends as they do."""
    rank = environment_value("RANK")
    if rank is None and found.trainer.num_ranks > 1:
        from launcher.ranks import run_ranks

        sys.exit(run_ranks(found.trainer.num_ranks, ["-m", "cli.main", *sys.argv[1:]]))
    return int(rank or 0)


def run(found: Settings, *, resume: bool, allow_changes: bool, evaluate: bool) -> None:
    """Run everything on this machine."""
    from launcher.local_run import run_here

    code = run_here(found, resume=resume, allow_changes=allow_changes, evaluate=evaluate)
    sys.exit(code)


def dead_list(found: Settings) -> None:
    """Print the dead letters."""
    letters = asyncio.run(_with_queue(found, lambda queue: queue.dead_letters()))
    for letter in letters:
        print(f"{letter.entry_id}  {letter.stream}  {safe(letter.work_id)}")
        for failure in letter.failures:
            print(f"    {safe(failure)}")
    print(f"{len(letters)} dead groups")


def dead_drop(found: Settings, entry_id: str) -> None:
    """Drop a dead letter."""
    if not asyncio.run(_with_queue(found, lambda queue: queue.drop(entry_id))):
        raise NotFoundError(f"no dead group {entry_id}: see `sgg-rl dead list`")
    print(f"dropped {entry_id}")


def make_tiny(folder: Path, seed: int, family: "Family") -> None:
    """Write a tiny model."""
    from scene_data.tiny_model import make_tiny_model

    make_tiny_model(folder, family=family, seed=seed)
    print(f"wrote {folder}")


async def _with_redis(found: Settings, work: Callable[[Any], Coroutine[Any, Any, T]]) -> T:
    from services.redis.check import check_redis
    from services.redis.client import connect

    redis = connect(found.redis)
    try:
        await check_redis(redis)
        return await work(redis)
    finally:
        await redis.aclose()


async def _with_queue(found: Settings, work: Callable[[Any], Coroutine[Any, Any, T]]) -> T:
    from services.redis.redis_queue import RedisQueue

    return await _with_redis(found, lambda redis: work(RedisQueue(redis, RunKeys(found.run.name))))
