"""The rollout service against raw vLLM on the same prompts, in one run.

python benchmarks/rollout.py                                          # tiny model, CPU
python benchmarks/rollout.py --only commit                            # one of its parts
python benchmarks/rollout.py --model Qwen/Qwen2.5-VL-3B-Instruct      # on a GPU

One server is started as a user starts it, and one `vllm.LLM` with the same engine arguments beside
it. Rounds take turns, so that a machine whose clock drifts slows all of them alike; each round has
images that nobody has seen. The raw engine gets images decoded before its clock starts; the server
gets them as PNG. All get the same sampling parameters and answers of the same length.
"""

import argparse
import asyncio
import base64
import io
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import huggingface_hub
import numpy as np
import psutil
from PIL import Image
from safetensors.torch import load_file, save_file

from planning.preflight.gpus import gpus_are_wanted
from rollout_service.http.app import prepare_vllm
from services.host.environment import child_environment, set_environment
from services.host.ports import free_port
from services.http.clients.rollout import RolloutClient
from services.images import ImageStore
from services.redis.client import connect
from services.redis.keys import RunKeys, prompt_stream
from services.redis.queue import RedisQueue
from services.redis.server import redis_server_command
from services.schemas.common import ChatMessage, ImagePart, Sampling, TextPart
from services.schemas.prompts import PromptGroup
from services.schemas.rollouts import InlineImage, RolloutRequest
from services.schemas.weights import (
    CommitRequest,
    StageRequest,
    Version,
    WeightManifest,
    manifest_checksum,
)
from services.settings import Settings, dump_settings
from weight_sync.digests import ALGORITHM
from weight_sync.transports.files import describe_file, private_folder
from weight_sync.transports.shm import shm_file

ROOT = Path(__file__).parents[1]
TINY = ROOT / "assets/toy-start"
MESSAGES = [
    ChatMessage(role="user", content=[ImagePart(), TextPart(text="Write the scene graph.")])
]
TEXT_ONLY = [ChatMessage(role="user", content=[TextPart(text="Write the scene graph.")])]
START_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What one round samples."""

    groups: int
    group_size: int
    max_tokens: int
    side: int
    """The side of the square images, in pixels."""

    def pictures(self, seed: int) -> list[bytes]:
        """PNG files of noise: as expensive as photographs, and all different."""
        rng = np.random.default_rng(seed)
        shape = (self.side, self.side, 3)
        return [_png(rng.integers(0, 255, shape, dtype=np.uint8)) for _ in range(self.groups)]

    def sampling(self, suppressed: Sequence[int]) -> Sampling:
        """Without end tokens: every completion has `max_tokens`."""
        return Sampling(
            n=self.group_size, max_tokens=self.max_tokens, suppress_token_ids=list(suppressed)
        )


class Raw:
    """`vllm.LLM` with the server's engine arguments."""

    def __init__(self, settings: Settings) -> None:
        prepare_vllm(settings)
        from vllm import LLM

        from rollout_service.vllm.engine import engine_args
        from rollout_service.vllm.sampling import sampling_params

        arguments = vars(engine_args(settings)) | {"disable_log_stats": True}
        for asynchronous in ("enable_log_requests",):
            arguments.pop(asynchronous, None)
        self._llm: Any = LLM(**arguments)
        self._sampling_params = sampling_params
        tokenizer = self._llm.get_tokenizer()
        self.suppressed = special_tokens(settings)
        chat = [message.model_dump() for message in MESSAGES]
        self._text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)

    def seconds(self, pictures: Sequence[bytes], sampling: Sampling) -> float:
        """Time to sample a group for each picture."""
        prompts = [
            {"prompt": self._text, "multi_modal_data": {"image": Image.open(io.BytesIO(p))}}
            for p in pictures
        ]
        for prompt in prompts:
            prompt["multi_modal_data"]["image"].load()
        started = time.perf_counter()
        outputs = self._llm.generate(prompts, self._sampling_params(sampling), use_tqdm=False)
        seconds = time.perf_counter() - started
        _check(len(o.token_ids) for output in outputs for o in output.outputs)
        return seconds

    def load_seconds(self, file: Path) -> float:
        """Time of vLLM's own three calls that load a file, with nothing to sample."""
        started = time.perf_counter()
        self._llm.collective_rpc("start_weight_update")
        self._llm.collective_rpc("update_weights", args=({"file": str(file)},))
        self._llm.collective_rpc("finish_weight_update")
        return time.perf_counter() - started


class Service:
    """The rollout server, reached by both its doors."""

    def __init__(self, settings: Settings, pid: int) -> None:
        self._settings = settings
        self._process = psutil.Process(pid)
        self._keys = RunKeys(settings.run.name)
        self.num_bytes = 0
        """The size of a version."""

    def costs(self, pictures: Sequence[bytes], sampling: Sampling) -> tuple[float, float]:
        """Time, and CPU time of server and engine, for groups of the pictures, or of a text.

        Other programs of the machine hardly add to the CPU time.
        """
        before = self._cpu_seconds()
        took = asyncio.run(self.over_http(pictures, sampling, num_texts=int(not pictures)))
        return took, self._cpu_seconds() - before

    def _cpu_seconds(self) -> float:
        # Linux makes a process's clock of its number (`clock_getcpuclockid`): in nanoseconds, where
        # psutil's times have steps of 10 ms.
        processes = [self._process, *self._process.children(recursive=True)]
        return sum(time.clock_gettime(~process.pid << 3 | 2) for process in processes)

    async def over_http(
        self, pictures: Sequence[bytes], sampling: Sampling, num_texts: int = 0
    ) -> float:
        """Time to sample a group for each picture and text, all asked for at once."""
        requests = [
            RolloutRequest(
                messages=MESSAGES,
                images=[InlineImage(data=base64.b64encode(p).decode())],
                sampling=sampling,
            )
            for p in pictures
        ]
        requests += [RolloutRequest(messages=TEXT_ONLY, sampling=sampling)] * num_texts
        async with RolloutClient(self._settings.rollout.url, timeout_s=600) as client:
            started = time.perf_counter()
            answers = await asyncio.gather(*(client.rollouts(r) for r in requests))
            seconds = time.perf_counter() - started
        _check(len(c.token_ids) for answer in answers for c in answer.completions)
        return seconds

    async def over_queue(self, pictures: Sequence[bytes], sampling: Sampling) -> float:
        """The same through Redis: from the first group asked for to the last one taken."""
        store = ImageStore(self._settings.run.files.images)
        groups = [
            PromptGroup(
                group_id=f"bench-{time.time_ns()}-{index}",
                incarnation=0,
                epoch=0,
                index=index,
                messages=MESSAGES,
                images=[store.put(picture)],
                sampling=sampling,
            )
            for index, picture in enumerate(pictures)
        ]
        queue = RedisQueue(connect(self._settings.redis), self._keys)
        try:
            started = time.perf_counter()
            for group in groups:
                body = group.model_dump_json().encode()
                await queue.enqueue(prompt_stream(group), group.work_id, body)
            for _ in groups:
                lease = None
                while lease is None:
                    lease = await queue.claim(["rollouts"], "bench", lease_s=60, block_s=5)
                await queue.complete(lease)
            return time.perf_counter() - started
        finally:
            await queue.aclose()

    def write_version(self, policy_version: int) -> Path:
        """The model's own tensors as a version in shared memory, in place of the one before."""
        run = self._settings.run.name
        file = shm_file(run, Version(1, policy_version))
        private_folder(file.parent)
        shm_file(run, Version(1, policy_version - 1)).unlink(missing_ok=True)
        tensors: dict[str, Any] = {}
        for shard in sorted(_model_folder(self._settings.model.path).glob("*.safetensors")):
            tensors |= load_file(shard)
        save_file(tensors, file)
        self.num_bytes = file.stat().st_size
        return file

    async def commit_seconds(
        self, policy_version: int, pictures: Sequence[bytes], sampling: Sampling
    ) -> float:
        """Time of a commit in the middle of sampling: all of it is a pause for the groups."""
        manifest = WeightManifest(
            policy_version=policy_version,
            incarnation=1,
            step=policy_version,
            vision_trained=True,
            algorithm=ALGORITHM,
            tensors=describe_file(shm_file(self._settings.run.name, Version(1, policy_version))),
        )
        checksum = manifest_checksum(manifest)
        async with RolloutClient(self._settings.rollout.url, timeout_s=600) as client:
            await client.stage(StageRequest(manifest=manifest, checksum=checksum))
            sampled = asyncio.create_task(self.over_http(pictures, sampling))
            await asyncio.sleep(0.5)  # all groups are on their way
            started = time.perf_counter()
            await client.commit(CommitRequest(policy_version=policy_version, checksum=checksum))
            seconds = time.perf_counter() - started
            if sampled.done():
                raise RuntimeError("the groups were done before the commit: sample more tokens")
            await sampled
        return seconds


def main() -> None:
    """Print the tables."""
    options = _options()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as parts:
        settings = _settings(options, Path(folder))
        parts.enter_context(_redis(Path(folder), settings))
        process = parts.enter_context(_server(Path(folder), settings))
        service = Service(settings, process.pid)
        print(f"{Path(options.model).name}, {_machine()}\n")
        if options.only in (None, "image"):
            image_cost(service, special_tokens(settings), options)
        if options.only == "image":
            return
        raw = Raw(settings)
        if options.only in (None, "commit"):
            commit_stall(raw, service, options)
        if options.only in (None, "throughput"):
            print(json.dumps(throughput(raw, service, options)))


def throughput(raw: Raw, service: Service, options: argparse.Namespace) -> dict[str, list[float]]:
    """Tokens a second through each door, of each round: also the last line, as JSON."""
    load = Load(
        groups=options.groups,
        group_size=options.group_size,
        max_tokens=options.max_tokens,
        side=options.side,
    )
    sampling = load.sampling(raw.suppressed)
    tokens = load.groups * load.group_size * load.max_tokens
    rows: list[tuple[float, float, float]] = []
    for number in range(options.rounds + 1):
        pictures = [load.pictures(3 * number + part) for part in range(3)]
        row = (
            raw.seconds(pictures[0], sampling),
            asyncio.run(service.over_queue(pictures[1], sampling)),
            asyncio.run(service.over_http(pictures[2], sampling)),
        )
        if number:  # the first round warms all three up
            rows.append(row)
    print(f"{load.groups} groups of {load.group_size}, {load.max_tokens} tokens, {load.side} px:")
    print("round | raw vLLM tok/s | queue tok/s (of raw) | REST tok/s (of raw)")
    for number, (bare, queue, rest) in enumerate(rows, start=1):
        print(
            f"{number} | {tokens / bare:.0f} | {tokens / queue:.0f} ({bare / queue:.1%}) | "
            f"{tokens / rest:.0f} ({bare / rest:.1%})"
        )
    ratios = [statistics.median(row[0] / row[door] for row in rows) for door in (1, 2)]
    print(f"median | | {ratios[0]:.1%} | {ratios[1]:.1%}\n")
    doors = ("raw", "queue", "rest")
    return {
        door: [tokens / seconds for seconds in taken]
        for door, taken in zip(doors, zip(*rows, strict=True), strict=True)
    }


def image_cost(service: Service, suppressed: list[int], options: argparse.Namespace) -> None:
    """What a new image adds to a group of one and to a group of many: with it, less without it."""
    sizes = (1, options.group_size)
    costs: dict[int, list[tuple[float, float]]] = {size: [] for size in sizes}
    for number in range(8 * options.rounds + 1):
        for size in sizes:
            load = Load(groups=1, group_size=size, max_tokens=1, side=options.image_side)
            pictures = load.pictures(1_000_000 + 100 * number + size)
            sampling = load.sampling(suppressed)
            took, cpu = service.costs(pictures, sampling)
            bare, bare_cpu = service.costs([], sampling)
            if number:
                costs[size].append((took - bare, cpu - bare_cpu))
    print(f"what a new image of {options.image_side} px adds to a group, over REST:")
    for kind, what in enumerate(("time", "CPU time of server and engine")):
        one, many = (1e3 * statistics.median(c[kind] for c in costs[size]) for size in sizes)
        print(f"{what}: of 1: {one:.0f} ms, of {sizes[1]}: {many:.0f} ms, {many / one:.2f} times")
    print()


def commit_stall(raw: Raw, service: Service, options: argparse.Namespace) -> None:
    """How long a commit keeps sampling waiting, against vLLM's own load of the same file."""
    load = Load(groups=8, group_size=8, max_tokens=8 * options.max_tokens, side=options.side)
    sampling = load.sampling(raw.suppressed)
    own: list[float] = []
    commits: list[float] = []
    for version in range(1, options.rounds + 2):
        file = service.write_version(version)
        own.append(raw.load_seconds(file))
        commits.append(
            asyncio.run(service.commit_seconds(version, load.pictures(version), sampling))
        )
    shutil.rmtree(file.parent)
    print(f"a version of {service.num_bytes / 1e6:.0f} MB, while {load.groups} groups are sampled:")
    print("round | vLLM's own load, idle, ms | commit, ms (of it)")
    for number, (bare, stall) in enumerate(zip(own[1:], commits[1:], strict=True), start=1):
        print(f"{number} | {1e3 * bare:.0f} | {1e3 * stall:.0f} ({stall / bare:.2f} times)")
    ratios = [stall / bare for bare, stall in zip(own[1:], commits[1:], strict=True)]
    print(f"median | | {statistics.median(ratios):.2f} times\n")


def _check(lengths: Iterator[int]) -> None:
    found = set(lengths)
    if len(found) != 1:
        raise RuntimeError(f"answers of lengths {sorted(found)}: the rounds are not comparable")


def special_tokens(settings: Settings) -> list[int]:
    """Up to 64 of them, which no answer is to have."""
    from transformers import AutoTokenizer

    return sorted(AutoTokenizer.from_pretrained(settings.model.path).added_tokens_decoder)[:64]


def _png(pixels: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(TINY))
    parser.add_argument("--groups", type=int, default=16)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--side", type=int, default=224, help="of the images, in pixels")
    parser.add_argument("--image-side", type=int, default=448, help="for the cost of an image")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--only", choices=["throughput", "image", "commit"])
    return parser.parse_args()


def _settings(options: argparse.Namespace, folder: Path) -> Settings:
    tiny = Path(options.model).resolve() == TINY or not gpus_are_wanted()
    return Settings.model_validate(
        {
            "run": {"name": "bench", "root": str(folder)},
            "model": {
                "path": options.model,
                "dtype": "float32" if tiny else "bfloat16",
            },
            "data": {"train": "unused"},
            "redis": {"url": f"redis://127.0.0.1:{free_port()}/0"},
            "rollout": {
                "url": f"http://127.0.0.1:{free_port()}",
                "max_num_seqs": 64,
                "max_model_len": 1024 if tiny else 4096,
                "kv_cache_gib": 0.5,
                # Server and raw engine share the device.
                "gpu_memory_utilization": 0.42,
                "enforce_eager": tiny,
                "groups_in_flight": 32,
            },
        }
    )


def _model_folder(path: str) -> Path:
    if Path(path).is_dir():
        return Path(path)
    return Path(huggingface_hub.snapshot_download(path, local_files_only=True))


@contextmanager
def _redis(folder: Path, settings: Settings) -> Iterator[None]:
    port = int(settings.redis.url.rpartition(":")[2].partition("/")[0])
    with _process(folder / "redis.log", redis_server_command(folder / "redis", port)):
        yield


@contextmanager
def _server(folder: Path, settings: Settings) -> "Iterator[subprocess.Popen[bytes]]":
    config, log = folder / "run.toml", folder / "rollout.log"
    config.write_text(dump_settings(settings))
    command = [sys.executable, "-m", "cli.main", "serve", "rollout", "--config", str(config)]
    with _process(log, command) as process:
        deadline = time.monotonic() + START_S
        while not _is_ready(settings.rollout.url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server did not start:\n{log.read_text()[-2000:]}")
            time.sleep(0.2)
        yield process


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


@contextmanager
def _process(log: Path, command: list[str]) -> Iterator["subprocess.Popen[bytes]"]:
    with log.open("w") as out:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=out, stderr=out, env=child_environment(OMP_NUM_THREADS="1")
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _machine() -> str:
    return f"{platform.machine()}, {os.cpu_count()} cores"


if __name__ == "__main__":
    # One thread for each engine process: threads that spin would take the other's cores.
    set_environment("OMP_NUM_THREADS", "1")
    main()
