"""How fast a server stages a version, against a plain copy of the same bytes in memory.

    python -m benchmarks.weights [--mib 1024] [--tensors 200] [--rounds 5]

Stage has to know the digest of every byte. What is measured is what the server does: `shm` from the
request to the verified file; `upload` over a loopback connection, by curl, in which the bytes are
hashed as they come; `sent` the same by the trainer's client; `http` an upload and the stage after
it. `sha256` and `blake3` are one thread's, and say what
to expect of more cores. `shm, sha256` is what a version of an earlier release takes. The rounds of
all take turns, so that other work on the machine slows each of them as much; what they take of the
cores (the sending curl too) hardly depends on it.
"""

import argparse
import asyncio
import os
import shutil
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import uvicorn
from fastapi import Request
from pydantic import BaseModel
from safetensors.numpy import save_file

from rollout_service.fake.engine import FakeEngine
from services.errors import EngineError
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
from weight_sync.digests import ALGORITHM, tensor_digest
from weight_sync.transports.files import describe_file
from weight_sync.transports.shm import shm_file
from weight_sync.transports.uploads import Spool
from weight_sync.updater import WeightUpdater

GB = 1e9


Work = Callable[[], Awaitable[None]]


class Seconds(NamedTuple):
    """What one work takes, or medians of its rounds."""

    wall: float
    cores: float
    """Sum over all cores, children's too."""


async def measure(mib: int, num_tensors: int, rounds: int) -> tuple[int, dict[str, Seconds]]:
    """Write a version of that size, and stage it again and again; returns its bytes too."""
    root = Path(tempfile.mkdtemp(prefix="sgg-bench-"))
    settings = _settings(root)
    array = np.random.default_rng(0).random(mib * 2**18 // num_tensors, dtype=np.float32)
    file = _write(settings, array, num_tensors)
    whole = np.concatenate([array] * num_tensors)
    try:
        async with _server(settings) as (updater, url):
            works = _works(updater, url, file, whole)
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

    async def http() -> None:
        await _upload(url, file)
        await _stage(updater, by[ALGORITHM], "http")

    return {
        "copy": copy,
        **{name: partial(hashed, name) for name in by},
        "shm, sha256": lambda: _stage(updater, by["sha256"], "shm"),
        "shm": lambda: _stage(updater, by[ALGORITHM], "shm"),
        "upload": lambda: _upload(url, file),
        "sent": lambda: _send(url, file),
        "http": http,
    }


async def _medians(works: dict[str, Work], rounds: int) -> dict[str, Seconds]:
    taken: dict[str, list[Seconds]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            before = _now()
            await work()
            taken[name].append(Seconds(*np.subtract(_now(), before)))
    return {name: Seconds(*np.median(times, axis=0)) for name, times in taken.items()}


def _now() -> Seconds:
    return Seconds(time.perf_counter(), sum(os.times()[:4]))


async def _stage(updater: WeightUpdater, manifest: WeightManifest, transport: str) -> None:
    checksum = manifest_checksum(manifest)
    request = StageRequest.model_validate(
        {"transport": transport, "manifest": manifest, "checksum": checksum}
    )
    await updater.stage(request)
    updater._forget()  # so that the next one is not taken for a repetition


async def _upload(url: str, file: Path) -> None:
    """By curl, so that the client takes no time of the server's process."""
    curl = ["curl", "-sSf", "--noproxy", "*", "-T", str(file), f"{url}/1/1"]
    process = await asyncio.create_subprocess_exec(*curl, stdout=asyncio.subprocess.DEVNULL)
    if await process.wait():
        raise EngineError("curl could not upload the file")


class Kept(BaseModel):
    """The route's answer."""


async def _send(url: str, file: Path) -> None:
    async with ServiceClient(url) as client:
        await client.put_file("/1/1", file, Kept)


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
    options = parser.parse_args()
    size, seconds = asyncio.run(measure(options.mib, options.tensors, options.rounds))
    print(f"{size / GB:.2f} GB in {options.tensors} tensors")
    for name, median in seconds.items():
        share = seconds["copy"].wall / median.wall
        print(
            f"{name:12s} {size / GB / median.wall:7.2f} GB/s {share:7.2f} of a copy "
            f"{median.cores * GB / size:7.2f} core seconds a GB"
        )


if __name__ == "__main__":
    main()
