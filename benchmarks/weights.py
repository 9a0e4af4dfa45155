"""How fast a server stages a version, against a plain copy of the same bytes in memory.

    python -m benchmarks.weights [--mib 1024] [--tensors 200] [--rounds 5] [--before 88e81e3]

Stage has to know the digest of every byte. What is measured is what the server does: `shm` from the
request to the verified file; `upload` over a loopback connection, by curl, in which the bytes are
hashed as they come; `sent` the same by the trainer's client; `http` an upload and the stage after
it. `sha256` and `blake3` are one thread's, `blake3, all cores` what a stage would take if the bytes
were there; `read` brings the file's bytes to a thread, one piece after the other. `shm, sha256` is
what a version of an earlier release takes. `--before` uploads with the code of an earlier commit of
this repository too; it knows 88e81e3, which has an event loop pass the bytes on. The rounds of all
take turns, so that other work on the machine slows each of them as much; what they take of the
cores (the sending curl too) hardly depends on it. The server's spool is in `TMPDIR`.
"""

import argparse
import asyncio
import io
import itertools
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage
from typing import Any, NamedTuple, get_args

import numpy as np
import uvicorn
from fastapi import Request
from pydantic import BaseModel
from safetensors.numpy import save_file

from rollout_service.fake.engine import FakeEngine
from services.errors import EngineError
from services.host.environment import child_environment
from services.host.ports import free_port
from services.http.app import bind, create_app, server_config
from services.http.clients.base import ServiceClient
from services.http.raw_body import RawBody
from services.schemas.weights import (
    DigestAlgorithm,
    StageRequest,
    Version,
    WeightManifest,
    manifest_checksum,
)
from services.settings import Settings
from weight_sync.digests import ALGORITHM, tensor_digest, tensor_digests
from weight_sync.transports.files import describe_file
from weight_sync.transports.shm import shm_file
from weight_sync.transports.uploads.spool import Spool
from weight_sync.updater import WeightUpdater

GB = 1e9
PIECE_BYTES = 4 * 2**20


class Seconds(NamedTuple):
    """What one work takes, or medians of its rounds."""

    wall: float
    cores: float
    """Sum over all cores, children's too."""


Work = Callable[[], Awaitable[Seconds | None]]
"""It says what it took where another process did it."""


async def measure(
    mib: int, num_tensors: int, rounds: int, before: str | None = None
) -> tuple[int, dict[str, Seconds]]:
    """Write a version of that size, and stage it again and again; returns its bytes too."""
    root = Path(tempfile.mkdtemp(prefix="sgg-bench-"))
    settings = _settings(root)
    array = np.random.default_rng(0).random(mib * 2**18 // num_tensors, dtype=np.float32)
    file = _write(settings, array, num_tensors)
    whole = np.concatenate([array] * num_tensors)
    try:
        async with AsyncExitStack() as stack:
            updater, url = await stack.enter_async_context(_server(settings))
            works = _works(updater, url, file, whole)
            if before is not None:
                works |= await stack.enter_async_context(_works_of(before, root, file))
            return file.stat().st_size, await _medians(works, rounds)
    finally:
        shutil.rmtree(root)
        shutil.rmtree(file.parent)


def _works(
    updater: WeightUpdater, url: str, file: Path, whole: "np.ndarray[tuple[int], np.dtype[Any]]"
) -> dict[str, Work]:
    by = {name: _manifest(file, name) for name in get_args(DigestAlgorithm)}
    target = np.ones_like(whole)  # written, so that its pages are there

    async def copy() -> None:
        np.copyto(target, whole)

    async def hashed(algorithm: DigestAlgorithm) -> None:
        tensor_digest(whole.data.cast("B"), algorithm)

    async def all_cores() -> None:
        size = len(whole) // 100
        parts = {str(i): whole[i * size : (i + 1) * size].data.cast("B") for i in range(100)}
        await asyncio.to_thread(tensor_digests, parts)

    async def read() -> None:
        buffer = np.empty(PIECE_BYTES, np.uint8)
        with file.open("rb", buffering=0) as opened:
            while opened.readinto(buffer.data):
                pass

    async def http() -> None:
        await _upload(url, file, 1)
        await _stage(updater, by[ALGORITHM], "http")

    versions = itertools.count(2)
    return {
        "copy": copy,
        "read": read,
        **{name: partial(hashed, name) for name in by},
        "blake3, all cores": all_cores,
        "shm, sha256": lambda: _stage(updater, by["sha256"], "shm"),
        "shm": lambda: _stage(updater, by[ALGORITHM], "shm"),
        "upload": lambda: _upload(url, file, next(versions)),
        "sent": lambda: _send(url, file, next(versions)),
        "http": http,
    }


_BEFORE = """
import asyncio, itertools, json, sys
from pathlib import Path
from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage
from time import perf_counter
from benchmarks.weights import _server, _settings
from services.clients.base import ServiceClient

def cores():
    return sum(sum(getrusage(who)[:2]) for who in (RUSAGE_SELF, RUSAGE_CHILDREN))

async def by_curl(url, path, file):
    curl = ["curl", "-sSf", "--noproxy", "*", "-o", "/dev/null", "-T", str(file), url + path]
    return await (await asyncio.create_subprocess_exec(*curl)).wait() == 0

async def by_client(url, path, file):
    async with ServiceClient(url) as client:
        return (await client._put_once(path, file)).is_success

async def main(root, file):
    async with _server(_settings(root)) as (_, url):
        for version in itertools.count(1):
            way = (await asyncio.to_thread(sys.stdin.readline)).strip()
            if not way:
                break
            start, used = perf_counter(), cores()
            assert await {"upload": by_curl, "sent": by_client}[way](url, f"/1/{version}", file)
            print(json.dumps([perf_counter() - start, cores() - used]), flush=True)

asyncio.run(main(*map(Path, sys.argv[1:])))
"""


@asynccontextmanager
async def _works_of(commit: str, root: Path, file: Path) -> AsyncIterator[dict[str, Work]]:
    """The same uploads by the code of 88e81e3, in a process with its own server."""
    tree, spool = root / "before", root / "run"
    spool.mkdir()
    await asyncio.to_thread(_unpack, commit, tree)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _BEFORE, str(spool), str(file)),
        cwd=tree,
        env=child_environment(PYTHONPATH=str(tree)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    asked, told = process.stdin, process.stdout
    assert asked is not None
    assert told is not None

    async def ask(way: str) -> Seconds:
        asked.write(f"{way}\n".encode())
        return Seconds(*json.loads(await told.readline()))

    try:
        yield {f"{way}, {commit}": partial(ask, way) for way in ("upload", "sent")}
    finally:
        asked.close()
        await process.wait()


def _unpack(commit: str, folder: Path) -> None:
    archive = subprocess.run(["git", "archive", commit], check=True, capture_output=True)
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as packed:
        packed.extractall(folder, filter="data")


async def _medians(works: dict[str, Work], rounds: int) -> dict[str, Seconds]:
    taken: dict[str, list[Seconds]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            before = _now()
            told = await work()
            taken[name].append(told or Seconds(*np.subtract(_now(), before)))
    return {name: Seconds(*np.median(times, axis=0)) for name, times in taken.items()}


def _now() -> Seconds:
    used = sum(sum(getrusage(who)[:2]) for who in (RUSAGE_SELF, RUSAGE_CHILDREN))
    return Seconds(time.perf_counter(), used)


async def _stage(updater: WeightUpdater, manifest: WeightManifest, transport: str) -> None:
    checksum = manifest_checksum(manifest)
    request = StageRequest.model_validate(
        {"transport": transport, "manifest": manifest, "checksum": checksum}
    )
    await updater.stage(request)
    updater._forget()  # so that the next one is not taken for a repetition


async def _upload(url: str, file: Path, version: int) -> None:
    """By curl, so that the client takes no time of the server's process."""
    curl = ["curl", "-sSf", "--noproxy", "*", "-T", str(file), f"{url}/1/{version}"]
    process = await asyncio.create_subprocess_exec(*curl, stdout=asyncio.subprocess.DEVNULL)
    if await process.wait():
        raise EngineError("curl could not upload the file")


class Kept(BaseModel):
    """The route's answer."""


async def _send(url: str, file: Path, version: int) -> None:
    async with ServiceClient(url) as client:
        await client.put_file(f"/1/{version}", file, Kept)


@asynccontextmanager
async def _server(settings: Settings) -> AsyncIterator[tuple[WeightUpdater, str]]:
    """A server's updater, with its upload route behind real uvicorn in a thread."""
    engine = FakeEngine(tokens_per_s=1.0, max_model_len=64)
    updater = WeightUpdater(settings, engine, Spool(settings))
    app = create_app(
        title="weights",
        readiness=lambda: None,
        body_limit_bytes=1000,
        streamed_paths=("/files",),
    )

    @app.put("/files/{incarnation}/{policy_version}")
    async def upload(incarnation: int, policy_version: int, request: Request) -> Kept:
        body = RawBody(request.scope, silence_s=60)
        await updater.upload(Version(incarnation, policy_version), body)
        return Kept()

    with bind(app, settings.rollout.url) as listener:
        server = uvicorn.Server(server_config(app))
        running = threading.Thread(target=server.run, args=([listener],))
        running.start()
        try:
            yield updater, f"{settings.rollout.url}/files"
        finally:
            server.should_exit = True
            running.join()
            updater.close()


def _settings(root: Path) -> Settings:
    return Settings.model_validate(
        {
            "run": {"name": root.name, "root": str(root)},
            "model": {"path": "none"},
            "data": {"train": "none"},
            "rollout": {"url": f"http://127.0.0.1:{free_port()}"},
        }
    )


def _write(
    settings: Settings, array: "np.ndarray[tuple[int], np.dtype[np.float32]]", num_tensors: int
) -> Path:
    file = shm_file(settings.run.name, Version(1, 1))
    file.parent.mkdir(mode=0o700)
    save_file({f"t{i}": array for i in range(num_tensors)}, file)
    return file


def _manifest(file: Path, algorithm: DigestAlgorithm) -> WeightManifest:
    return WeightManifest(
        policy_version=1,
        incarnation=1,
        step=1,
        vision_trained=True,
        algorithm=algorithm,
        tensors=describe_file(file, algorithm),
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--tensors", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--before", help="a commit of this repository, whose uploads are measured too"
    )
    options = parser.parse_args()
    size, seconds = asyncio.run(
        measure(options.mib, options.tensors, options.rounds, options.before)
    )
    print(f"{size / GB:.2f} GB in {options.tensors} tensors")
    for name, median in seconds.items():
        share = seconds["copy"].wall / median.wall
        print(
            f"{name:18s} {size / GB / median.wall:7.2f} GB/s {share:7.2f} of a copy "
            f"{median.cores * GB / size:7.2f} core seconds a GB"
        )


if __name__ == "__main__":
    main()
