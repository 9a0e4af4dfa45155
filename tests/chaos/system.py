"""The parts of a run as processes, and the lines between them."""

import json
import os
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Literal

from redis.exceptions import RedisError

from scene_data.toy.scenes import make_toy
from services.host.ports import free_port
from services.redis.keys import CONSUMER_GROUPS, RunKeys
from services.redis.sentinel import SCHEME
from services.settings import Settings, dump_settings
from tests.chaos.disks import Disk
from tests.chaos.part import Part
from tests.chaos.proxy import Proxy
from tests.chaos.redises import SERVICE, Redises
from tests.processes import ROOT

NUM_ROWS = 48
LEASE_S = 2.0
_TAIL_BYTES = 65_536
"""Longer than a line of the metrics."""

Engine = Literal["fake", "vllm"]
NUM_SERVERS: dict[Engine, int] = {"fake": 3, "vllm": 1}


class System:
    """A run with two ranks, rollout servers, a reward service and two Redis with a Sentinel.

    Every line to Redis, to the reward service and to a rollout server has a proxy of its own.
    """

    def __init__(
        self,
        folder: Path,
        *,
        lag: int,
        num_steps: int,
        root: Path = ROOT,
        engine: Engine = "fake",
        own_host: bool = False,
    ) -> None:
        """Starts nothing.

        Args:
            folder: For the run, its data and logs.
            lag: `trainer.max_policy_lag`.
            num_steps: The trainer's.
            root: The project, or a changed copy of it.
            engine: Of the rollout servers.
            own_host: Whether disks are mounted and Redis gets a clock of its own.
        """
        self.folder = folder
        self.lag = lag
        self._root = root
        self.engine: Engine = engine
        self.servers = [f"rollout-{number}" for number in range(NUM_SERVERS[engine])]
        make_toy(folder / "toy", num_train=NUM_ROWS, num_heldout=2)
        self.disks = {
            name: Disk(folder / name, is_own=own_host)
            for name in ("runs", "weights", *(f"spool-{name}" for name in self.servers))
        }
        self.redises = Redises(folder, own_clock=own_host)
        self.lines: dict[str, list[Proxy]] = {}
        self._urls: dict[str, str] = {}
        self._ports = {name: free_port() for name in ("reward", *self.servers)}
        """Where they listen."""
        self._draw_lines()
        self.parts: dict[str, Part] = {}
        self._tree = self._settings(num_steps)
        self.settings = Settings.model_validate(self._tree)
        self.keys = RunKeys(self.settings.run.name)
        self._stack = ExitStack()

    def __enter__(self) -> "System":
        with ExitStack() as stack:
            for disk in self.disks.values():
                stack.enter_context(disk)
            for line in self.lines.values():
                for proxy in line:
                    stack.enter_context(proxy)
            stack.callback(self._close)
            self._start_all()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def rows(self, name: str) -> list[dict[str, Any]]:
        """The lines of one of the run's tables that are whole."""
        file = self.settings.run.folder / name
        lines = file.read_bytes().split(b"\n")[:-1] if file.exists() else []
        return [json.loads(line) for line in lines]

    def last_step(self) -> tuple[int, float]:
        """The last step and when it ended, in Unix seconds; -1 and 0.0 before the first."""
        try:
            with (self.settings.run.folder / "metrics.jsonl").open("rb") as file:
                file.seek(max(file.seek(0, os.SEEK_END) - _TAIL_BYTES, 0))
                lines = file.read().split(b"\n")[:-1]
            row = json.loads(lines[-1])
        except (FileNotFoundError, IndexError, ValueError):  # none yet, or it is being cut
            return -1, 0.0
        return int(row["step"]), float(row["time"])

    def rank_pids(self) -> list[int]:
        files = sorted(self.settings.run.files.ranks.glob("rank-?.json"))
        return [int(json.loads(file.read_text())["pid"]) for file in files]

    def part(self, name: str) -> Part:
        """The part of a name; for `redis` the primary."""
        return self.parts[self.redises.primary() if name == "redis" else name]

    def num_open(self) -> int:
        """Groups that are asked for and not yet received by the trainer; 0 without Redis."""
        with suppress(RedisError), self.redises.client() as client:
            asked = client.pipeline(transaction=False)
            for stream in CONSUMER_GROUPS:
                asked.xlen(self.keys.stream(stream))
            return sum(asked.execute())
        return 0

    def url(self, name: str) -> str:
        """Where a service itself is, without the proxy before it."""
        return f"http://127.0.0.1:{self._ports[name]}"

    def public_port(self, server: str) -> int:
        """The port of a rollout server that the others know."""
        return int(self._urls[server].rpartition(":")[2])

    def _draw_lines(self) -> None:
        for client in ("trainer", *self.servers):
            redises = [Proxy(free_port(), port) for port in self.redises.ports.values()]
            says = {proxy.target: proxy.port for proxy in redises}
            sentinel = Proxy(free_port(), self.redises.sentinel_port, says)
            self.lines[f"{client} to redis"] = [sentinel, *redises]
        for name, port in self._ports.items():
            proxy = Proxy(free_port(), port)
            self.lines[f"trainer to {name}"] = [proxy]
            self._urls[name] = f"http://127.0.0.1:{proxy.port}"
        if len(self.servers) > 1:
            for name in self.servers:
                self.lines[f"servers to {name}"] = [Proxy(free_port(), self._ports[name])]

    def _start_all(self) -> None:
        self.redises.start(self._start_redis)
        self.parts |= self.redises.parts
        self._start("reward", "serve reward", {"reward": {"url": self.url("reward")}})
        for name in self.servers:
            sections = self._redis(name) | {"rollout": {"url": self._urls[name]}}
            self._start(name, "serve rollout", sections, spool=f"spool-{name}", **self._ways(name))
        reward = {"reward": {"url": self._urls["reward"]}}
        self._start("trainer", "train --resume", self._redis("trainer") | reward, spool="weights")

    def _close(self) -> None:
        for part in reversed(self.parts.values()):
            part.close()
        if self.redises.environment:
            self.redises.clear()

    def _ways(self, server: str) -> dict[str, str]:
        ways = {
            self.public_port(other): self.lines[f"servers to {other}"][0].port
            for other in self.servers
            if other != server
        }
        ways[self.public_port(server)] = self._ports[server]
        return {"CHAOS_WAYS": json.dumps(ways)}

    def _start_redis(self, name: str) -> Part:
        sections: dict[str, Any] = {
            "redis": {"url": f"redis://127.0.0.1:{self.redises.ports[name]}/0"}
        }
        # A disk of its own: a promoted replica (Valkey 9.1.2) once could not read its own file
        # after the disk had been full.
        sections["run"] = {"root": str(self.folder / name)}
        return self._start(name, "serve redis", sections, **self.redises.environment)

    def _start(
        self, name: str, command: str, sections: dict[str, Any], *, spool: str = "", **more: str
    ) -> Part:
        tree = {k: self._tree.get(k, {}) | sections.get(k, {}) for k in {*self._tree, *sections}}
        config = self.folder / f"{name}.toml"
        config.write_text(dump_settings(Settings.model_validate(tree)))
        if spool:
            more["TMPDIR"] = str(self.disks[spool].folder)
        program = (
            [str(ROOT / "tests/chaos/behind.py")] if "CHAOS_WAYS" in more else ["-m", "cli.main"]
        )
        words = [sys.executable, *program, *command.split(), "--config", str(config)]
        part = Part(name, words, self.folder / f"{name}.log", self._root, **more)
        self.parts[name] = part
        return part

    def _redis(self, client: str) -> dict[str, Any]:
        port = self.lines[f"{client} to redis"][0].port
        return {"redis": {"url": f"{SCHEME}://127.0.0.1:{port}/{SERVICE}/0"}}

    def _settings(self, num_steps: int) -> dict[str, Any]:
        return {
            "run": {"name": f"chaos-{os.getpid()}", "root": str(self.disks["runs"].folder)},
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
            "rollout": {
                "engine": self.engine,
                "fake_tokens_per_s": 400,
                "max_model_len": 512,
                "max_num_seqs": 32,
                "kv_cache_gib": 0.25,
                "enforce_eager": True,
            },
            "sampling": {"max_tokens": 48},
            "weights": {"transport": "http"},
            "records": {"keep_rollouts": 1_000_000},
            "trainer": {
                "num_steps": num_steps,
                "num_ranks": 2,
                "groups_per_step": 4,
                "group_size": 2,
                "max_policy_lag": self.lag,
                "max_token_lag": 2 * self.lag,
                # What vLLM samples is to tell one version from the next.
                "learning_rate": 1e-3 if self.engine == "vllm" else 1e-4,
                "checkpoint_every": 4,
                "wait_timeout_s": 120,
            },
        }
