"""How much Redis, the run's folder and its processes grow in a run that goes on for days.

python -m benchmarks.growth                                            # 7 minutes
python -m benchmarks.growth --seconds 1800 --picture docs/soak.png     # the soak

The loop is real but for model and optimizer: collector, weight updates, records, Redis with its
file, the reward service, and rollout servers with the fake engine. It runs as fast as this machine
lets it. A tenth of a second stands for a step. What a finished group leaves behind for a time is
let go after `--guard-s` in place of `GUARD_TTL_S`, so that a few minutes see the whole of it. The
dead are at their limit from the start. The table has a line every so often. Below it, a straight
line is fitted to each column after the warm-up (a third of the run): what it rises by in an hour,
with two standard errors. What surely rises by more than 5 % an hour is named, and the exit code
is 1. `lines MiB` has a line for each step, and so has to rise.
"""

import argparse
import asyncio
import itertools
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import numpy as np
import psutil
import torch

from cli.main import app as sgg_rl
from scene_data.dataset import open_dataset
from scene_data.toy.scenes import make_toy
from services.host.ports import free_port
from services.redis import queue as redis_queue
from services.redis.client import connect, redis_answers
from services.redis.keys import RunKeys
from services.redis.lua import MAX_DEAD
from services.redis.queue import RedisQueue
from services.redis.server import redis_server_command
from services.schemas.weights import Version
from services.settings import Settings, dump_settings
from tests.alone import Alone, first_start
from tests.processes import sgg_process, wait_ready
from trainer.collection.prompts import PromptSource
from trainer.connection import ServiceConnection
from trainer.records.files import RunRecords, ledger_line, metrics_line
from weight_sync.transports.shm import shm_file

SPAWN = multiprocessing.get_context("spawn")
NUM_ROWS = 3_000
GROUPS_PER_STEP, GROUP_SIZE, MAX_TOKENS = 64, 8, 64
KEEP_ROLLOUTS, CHECKPOINT_EVERY = 20, 10
DEAD_BYTES = 20_000
STEP_S = 0.1
LINE_S = 15.0
MIB = 2**20
GROW = ("s", "groups", "lines MiB")
"""What is not asked to be level."""
MOST_AN_HOUR = 0.05
"""Share of its mean by which a column may rise."""


class Clock:
    """The phases of a step that has none."""

    total_s = STEP_S
    seconds: Mapping[str, float] = {"wait": STEP_S}


@contextmanager
def redis_server(folder: Path) -> Iterator[tuple[str, int]]:
    """A server of our own, as `sgg-rl serve redis` starts it; its URL and process id."""
    port = free_port()
    command = redis_server_command(folder / "redis", port)
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    url = f"redis://127.0.0.1:{port}/0"
    try:
        while not redis_answers(url):
            time.sleep(0.05)
        yield url, server.pid
    finally:
        server.kill()
        server.wait()


def settings_of(folder: Path, redis_url: str) -> Settings:
    """The settings of the run and of its first server."""
    make_toy(folder / "data", num_train=NUM_ROWS, num_heldout=1)
    return Settings.model_validate(
        {
            "run": {"name": "growth", "root": str(folder)},
            "model": {"path": "none", "box_space": "relative_1000"},
            "data": {"train": str(folder / "data/train.parquet"), "template": "toy"},
            "redis": {"url": redis_url},
            "reward": {"url": f"http://127.0.0.1:{free_port()}"},
            "rollout": {"engine": "fake", "fake_tokens_per_s": 1e6, "groups_in_flight": 16},
            "sampling": {"max_tokens": MAX_TOKENS},
            "records": {"keep_rollouts": KEEP_ROLLOUTS},
            "trainer": {
                "groups_per_step": GROUPS_PER_STEP,
                "group_size": GROUP_SIZE,
                "max_policy_lag": 1,
            },
        }
    )


def serve(config: str, guard_s: int) -> None:
    """A rollout server in this process."""
    redis_queue.GUARD_TTL_S = guard_s
    sgg_rl(["serve", "rollout", "--config", config])


@contextmanager
def services(settings: Settings, num_servers: int, guard_s: int) -> Iterator[dict[str, int]]:
    """The reward service and rollout servers; their process ids by name."""
    folder = settings.run.root
    config = folder / "reward.toml"
    config.write_text(dump_settings(settings))
    with ExitStack() as stack:
        log = folder / "reward.log"
        reward = stack.enter_context(sgg_process(log, "serve", "reward", "-c", str(config)))
        wait_ready(settings.reward.url, reward, log)
        found = {"reward": reward.pid}
        for number in range(num_servers):
            config = folder / f"rollout-{number}.toml"
            rollout = settings.rollout.model_copy(update={"url": f"http://127.0.0.1:{free_port()}"})
            config.write_text(dump_settings(settings.model_copy(update={"rollout": rollout})))
            process = SPAWN.Process(target=serve, args=(str(config), guard_s))
            process.start()
            stack.callback(process.join)
            stack.callback(process.kill)
            found[f"server {number}"] = process.pid or 0
        yield found


async def fill_dead(settings: Settings) -> None:
    """As many dead groups as are kept, and some more."""
    queue = RedisQueue(connect(settings.redis), RunKeys(settings.run.name))
    for number in range(MAX_DEAD + 50):
        await queue.bury("rollouts", f"dead-{number}", os.urandom(DEAD_BYTES), "of no use")
    await queue.aclose()


async def in_redis(settings: Settings) -> dict[str, float]:
    """MiB of its memory, of its file, and keys."""
    client = connect(settings.redis)
    memory, persistence = await client.info("memory"), await client.info("persistence")
    keys = await client.dbsize()
    await client.aclose()
    return {
        "Redis MiB": memory["used_memory"] / MIB,
        "keys": keys,
        "AOF MiB": persistence["aof_current_size"] / MIB,
    }


def in_processes(processes: dict[str, int]) -> dict[str, float]:
    """Resident MiB, open descriptors and threads of each, with its own processes.

    The trainer is this process, whose own processes are all others.
    """
    found: dict[str, float] = {}
    for name, pid in processes.items():
        process = psutil.Process(pid)
        family = [process, *([] if name == "trainer" else process.children(recursive=True))]
        found[f"{name} MiB"] = sum(each.memory_info().rss for each in family) / MIB
        found[f"{name} fds"] = sum(each.num_fds() for each in family)
        found[f"{name} threads"] = sum(each.num_threads() for each in family)
    return found


def sizes(settings: Settings, processes: dict[str, int]) -> dict[str, float]:
    """What there is now."""
    run = settings.run.folder
    on_disk = dict(_files(run))
    lines = sum(size for path, size in on_disk.items() if path.suffix == ".jsonl")
    return {
        **asyncio.run(in_redis(settings)),
        "images": sum(settings.run.files.images in path.parents for path in on_disk),
        "disk MiB": (sum(on_disk.values()) - lines) / MIB,
        "lines MiB": lines / MIB,
        "shm files": len(list(shm_file("growth", Version()).parent.glob("*"))),
        **in_processes(processes),
    }


def _files(folder: Path) -> Iterator[tuple[Path, int]]:
    """Each file with its bytes; some go meanwhile."""
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            if path.is_file():
                yield path, path.stat().st_size


def train(settings: Settings, seconds: float, processes: dict[str, int]) -> list[dict[str, float]]:
    """Run the loop; sizes at every `LINE_S`."""
    prompts = PromptSource(settings, open_dataset(settings.data.train), [7])
    records = RunRecords(settings, 0)
    records.cut_to(0)
    lines: list[dict[str, float]] = []
    with ServiceConnection(settings, prompts, first_start(settings), Alone()) as link:
        link.start(weights(0), 0)
        began = time.monotonic()
        for step in itertools.count():
            batch = link.take(step)
            time.sleep(STEP_S)
            link.publish(weights(step + 1), step + 1, batch)
            logprobs = [c.rollout_logprobs for g in batch.groups for c in g.rollout.completions]
            records.rollouts.write(step, batch.groups, logprobs)
            records.rollouts.finish(step, batch.unused)
            row = metrics_line(batch, {}, step, step + 1, Clock())  # type: ignore[arg-type]
            records.step(row, ledger_line(batch, step))
            if (step + 1) % CHECKPOINT_EVERY == 0:
                records.committed(step + 1)
            passed = time.monotonic() - began
            if passed > LINE_S * (len(lines) + 1):
                groups = (step + 1) * GROUPS_PER_STEP
                lines.append({"s": passed, "groups": groups} | sizes(settings, processes))
                say(lines)
            if passed > seconds:
                return lines
    raise AssertionError


def weights(version: int) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a small version."""
    yield "w", torch.full((1000,), float(version))


def say(lines: list[dict[str, float]]) -> None:
    """The last line, under the names of the columns."""
    if len(lines) == 1:
        print(" ".join(name.replace(" ", "_") for name in lines[0]))
    print(" ".join(f"{value:.1f}" for value in lines[-1].values()), flush=True)


def slope(lines: list[dict[str, float]], name: str) -> tuple[float, float]:
    """What a column rises by in an hour, by least squares, and two standard errors of that."""
    hours = np.array([line["s"] for line in lines]) / 3600
    values = np.array([line[name] for line in lines])
    hours = hours - hours.mean()
    rise = float(hours @ values / (hours @ hours))
    rest = values - values.mean() - rise * hours
    error = np.sqrt(rest @ rest / max(len(lines) - 2, 1) / (hours @ hours))
    return rise, 2 * float(error)


def judged(lines: list[dict[str, float]]) -> list[str]:
    """Say of each column how it went after the warm-up; those that rise by too much."""
    rising = []
    for name in lines[0]:
        if name in ("s", "groups"):
            continue
        values = [line[name] for line in lines]
        rise, error = slope(lines, name)
        mean = sum(values) / len(values)
        said = f"{rise:+.2f} ± {error:.2f} an hour"
        print(f"{name:>16}: between {min(values):.1f} and {max(values):.1f}; {said}")
        if name not in GROW and rise - error > MOST_AN_HOUR * mean:
            rising.append(name)
    return rising


def draw(lines: list[dict[str, float]], file: Path) -> None:
    """A panel for each kind: memory, descriptors, threads, keys, disk."""
    from matplotlib import pyplot as plt

    kinds = (
        ("memory, MiB", [name for name in lines[0] if name.endswith(" MiB") and name[0].islower()]),
        ("descriptors", [name for name in lines[0] if name.endswith(" fds")]),
        ("threads", [name for name in lines[0] if name.endswith(" threads")]),
        ("keys in Redis", ["keys"]),
        ("disk and Redis, MiB", ["disk MiB", "lines MiB", "Redis MiB", "AOF MiB"]),
    )
    figure, panels = plt.subplots(len(kinds), sharex=True, figsize=(8, 10), layout="constrained")
    minutes = [line["s"] / 60 for line in lines]
    for panel, (title, names) in zip(panels, kinds, strict=True):
        for name in [n for n in names if title.startswith("disk") or n not in kinds[4][1]]:
            panel.plot(minutes, [line[name] for line in lines], label=name.rsplit(" ", 1)[0])
        panel.set_title(title, fontsize="medium", loc="left")
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
        if len(names) > 1:
            panel.legend(fontsize="x-small", ncols=3, loc="lower right")
    panels[-1].set_xlabel("minutes")
    figure.savefig(file, dpi=80)


def main() -> int:
    """Run it and print the growth."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=420.0)
    parser.add_argument("--servers", type=int, default=2)
    parser.add_argument("--guard-s", type=int, default=60)
    parser.add_argument("--picture", type=Path, help="where the curves are drawn")
    options = parser.parse_args()
    guard_s, redis_queue.GUARD_TTL_S = redis_queue.GUARD_TTL_S, options.guard_s
    with tempfile.TemporaryDirectory() as folder, redis_server(Path(folder)) as (url, redis_pid):
        settings = settings_of(Path(folder), url)
        asyncio.run(fill_dead(settings))
        with services(settings, options.servers, options.guard_s) as found:
            processes = {"trainer": os.getpid(), "redis": redis_pid, **found}
            lines = train(settings, options.seconds, processes)
    if options.picture:
        draw(lines, options.picture)
    last = [line for line in lines if line["s"] > max(2 * options.guard_s, options.seconds / 3)]
    seconds, groups = (last[-1][name] - last[0][name] for name in ("s", "groups"))
    print(f"\n{groups / seconds:.0f} groups/s in the last {seconds:.0f} s; in these:")
    rising = judged(last)
    print(f"guards live for {guard_s} s in a run, here for {options.guard_s} s")
    print(f"rises: {', '.join(rising) or 'nothing'}")
    return bool(rising)


if __name__ == "__main__":
    sys.exit(main())
