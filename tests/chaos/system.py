"""The parts of a run as processes, each started again when it ends, and the lines between them."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import redis

from scene_data.toy.scenes import make_toy
from services.host.environment import child_environment
from services.host.ports import free_port
from services.settings import Settings, dump_settings
from tests.chaos.proxy import Proxy
from tests.processes import OF_A_RANK, ROOT

NUM_ROWS = 48
NUM_SERVERS = 3
LEASE_S = 2.0
LINES = (
    "trainer to reward",
    "trainer to redis",
    *(f"rollout-{number} to redis" for number in range(NUM_SERVERS)),
)
_PAUSE_S = 0.2
"""Before a part that has ended is started again."""
_FINAL = (0, 75)
"""Exit codes of a trainer that is done, or was told to stop."""


class Part:
    """One process in a session of its own. It comes back until `close`."""

    def __init__(self, name: str, command: list[str], log: Path, root: Path) -> None:
        self.name = name
        self.num_starts = 0
        self._command = command
        self._log = log
        self._root = root
        self._closed = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._thread.start()

    @property
    def is_done(self) -> bool:
        """Whether it ended and stays so."""
        return not self._thread.is_alive()

    def signal(self, number: int) -> None:
        """To the part and all that it has started."""
        process = self._process
        if process is not None and process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)

    def terminate(self) -> None:
        """As a supervisor does: to the part alone, which does not come back."""
        self._closed.set()
        if self._process is not None:
            self._process.terminate()

    def wait(self, timeout_s: float) -> None:
        self._thread.join(timeout_s)

    def close(self) -> None:
        self._closed.set()
        for number in (signal.SIGCONT, signal.SIGKILL):
            self.signal(number)
        self._thread.join(10)

    def _keep(self) -> None:
        environment = child_environment(OMP_NUM_THREADS="1", PYTHONPATH=str(self._root))
        for name in OF_A_RANK:
            environment.pop(name, None)
        while not self._closed.is_set():
            with self._log.open("a") as out:
                self._process = subprocess.Popen(
                    self._command,
                    cwd=self._root,
                    stdout=out,
                    stderr=out,
                    env=environment,
                    start_new_session=True,
                )
            self.num_starts += 1
            code = self._process.wait()
            self.signal(signal.SIGKILL)
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)  # what the dead one left behind
            if self.name == "trainer" and code in _FINAL:
                return
            time.sleep(_PAUSE_S)


class System:
    """A run with two ranks, three servers of the fake engine, a reward service and Redis.

    Every line to Redis and to the reward service has a proxy of its own.
    """

    def __init__(self, folder: Path, *, lag: int, num_steps: int, root: Path = ROOT) -> None:
        """Starts nothing.

        Args:
            folder: For the run, its data and logs.
            lag: `trainer.max_policy_lag`.
            num_steps: The trainer's.
            root: The project, or a changed copy of it.
        """
        self.folder = folder
        self.lag = lag
        self._root = root
        make_toy(folder / "toy", num_train=NUM_ROWS, num_heldout=2)
        self._redis_port, self._reward_port = free_port(), free_port()
        self.proxies = {
            line: Proxy(
                free_port(), self._redis_port if line.endswith("redis") else self._reward_port
            )
            for line in LINES
        }
        self.parts: dict[str, Part] = {}
        self._urls = [f"http://127.0.0.1:{free_port()}" for _ in range(NUM_SERVERS)]
        self._tree = self._settings(num_steps)
        self.settings = Settings.model_validate(self._tree)
        self._stack = ExitStack()

    def __enter__(self) -> "System":
        for proxy in self.proxies.values():
            self._stack.enter_context(proxy)
        own = {"redis": {"url": f"redis://127.0.0.1:{self._redis_port}/0"}}
        own["reward"] = {"url": f"http://127.0.0.1:{self._reward_port}"}
        self._start("redis", "serve redis", own)
        self._start("reward", "serve reward", own)
        for number, url in enumerate(self._urls):
            name = f"rollout-{number}"
            self._start(name, "serve rollout", self._line(name) | {"rollout": {"url": url}})
        reward = {"reward": {"url": f"http://127.0.0.1:{self.proxies['trainer to reward'].port}"}}
        self._start("trainer", "train --resume", self._line("trainer") | reward)
        return self

    def __exit__(self, *_: object) -> None:
        for part in reversed(self.parts.values()):
            part.close()
        self._stack.close()
        shutil.rmtree(self.settings.run.folder / "weights", ignore_errors=True)

    def rows(self, name: str) -> list[dict[str, Any]]:
        """The lines of one of the run's tables that are whole."""
        file = self.settings.run.folder / name
        lines = file.read_bytes().split(b"\n")[:-1] if file.exists() else []
        return [json.loads(line) for line in lines]

    def last_step(self) -> tuple[int, float]:
        """The last step and when it ended, in Unix seconds; -1 and 0.0 before the first."""
        try:
            rows = self.rows("metrics.jsonl")[-1:]
        except FileNotFoundError:  # it is being cut
            rows = []
        return (int(rows[0]["step"]), float(rows[0]["time"])) if rows else (-1, 0.0)

    def rank_pids(self) -> list[int]:
        files = sorted(self.settings.run.files.ranks.glob("rank-?.json"))
        return [int(json.loads(file.read_text())["pid"]) for file in files]

    def empty_redis(self) -> None:
        with suppress(redis.RedisError):
            redis.Redis(port=self._redis_port).flushall()

    def _start(self, name: str, command: str, sections: dict[str, Any]) -> None:
        tree = {k: self._tree.get(k, {}) | sections.get(k, {}) for k in {*self._tree, *sections}}
        config = self.folder / f"{name}.toml"
        config.write_text(dump_settings(Settings.model_validate(tree)))
        words = [sys.executable, "-m", "cli.main", *command.split(), "--config", str(config)]
        self.parts[name] = Part(name, words, self.folder / f"{name}.log", self._root)

    def _line(self, name: str) -> dict[str, Any]:
        return {"redis": {"url": f"redis://127.0.0.1:{self.proxies[f'{name} to redis'].port}/0"}}

    def _settings(self, num_steps: int) -> dict[str, Any]:
        return {
            "run": {"name": f"chaos-{os.getpid()}", "root": str(self.folder)},
            "model": {
                "path": str(ROOT / "assets/toy-start"),
                "dtype": "float32",
                "box_space": "relative_1000",
                "box_space_override": True,
                "min_pixels": 12544,
                "max_pixels": 12544,
            },
            "data": {"train": str(self.folder / "toy/train.parquet"), "template": "toy"},
            "redis": {"lease_s": LEASE_S, "max_deliveries": 1000},
            "reward": {"timeout_s": 2.0},
            "rollout": {"engine": "fake", "fake_tokens_per_s": 2000, "max_model_len": 512},
            "sampling": {"max_tokens": 48},
            "weights": {"transport": "disk"},
            "records": {"keep_rollouts": 1_000_000},
            "trainer": {
                "num_steps": num_steps,
                "num_ranks": 2,
                "groups_per_step": 4,
                "group_size": 2,
                "max_policy_lag": self.lag,
                "max_token_lag": 2 * self.lag,
                "learning_rate": 1e-4,
                "checkpoint_every": 4,
                "wait_timeout_s": 120,
            },
        }
