"""How fast a server stages a version, against a plain copy of the same bytes in memory.

    python -m benchmarks.weights [--mib 1024] [--tensors 200] [--rounds 5]

Stage has to know the sha256 of every byte. What is measured is what the server does: `shm` from the
request to the verified file; `http` the upload over a loopback connection, in which the bytes are
hashed as they come, and the stage after it. `sha256` is one thread's, and says what to expect of
more cores.
"""

import argparse
import asyncio
import hashlib
import shutil
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import uvicorn
from fastapi import Request
from safetensors.numpy import save_file

from rollout_service.fake.engine import FakeEngine
from services.errors import EngineError
from services.host.ports import free_port
from services.http.app import bind, create_app
from services.schemas.weights import (
    StageRequest,
    TensorEntry,
    Version,
    WeightManifest,
    manifest_checksum,
)
from services.settings import Settings
from weight_sync.transports.shm import shm_file
from weight_sync.transports.uploads import Spool
from weight_sync.updater import WeightUpdater

GB = 1e9


@dataclass(frozen=True, slots=True)
class StageSpeed:
    """Medians, in bytes a second; ratios are to `copy`."""

    num_bytes: int
    copy: float
    """`numpy.copyto` into memory that has been written before."""
    sha256: float
    """Hashing in one thread that does nothing else."""
    shm: float
    """A stage over `shm`."""
    upload: float
    """The upload before a stage over `http`."""
    http: float
    """The stage after that upload."""

    def lines(self) -> list[str]:
        """For people."""
        rates = {
            "copy": self.copy,
            "sha256": self.sha256,
            "shm": self.shm,
            "upload": self.upload,
            "http": self.http,
        }
        return [
            f"{name:7s} {rate / GB:9.2f} GB/s  {rate / self.copy:8.2f} of a copy"
            for name, rate in rates.items()
        ]


async def measure_stage(mib: int, num_tensors: int, rounds: int) -> StageSpeed:
    """Write a version of that size, and stage it again and again."""
    root = Path(tempfile.mkdtemp(prefix="sgg-bench-"))
    settings = _settings(root)
    array = np.random.default_rng(0).random(mib * 2**18 // num_tensors, dtype=np.float32)
    manifest = _write(settings, array, num_tensors)
    file = shm_file(settings.run.name, Version(1, 1))
    num_bytes = file.stat().st_size
    try:
        async with _server(settings) as (updater, url):
            whole = np.concatenate([array] * num_tensors)
            copy = _copy_s(whole, rounds)
            sha256 = await _median_s(lambda: _hash(whole), rounds)
            shm = await _median_s(lambda: _stage(updater, manifest, "shm"), rounds)
            upload = await _median_s(lambda: _upload(url, file), rounds)
            http = await _median_s(lambda: _stage(updater, manifest, "http"), rounds)
    finally:
        shutil.rmtree(root)
        shutil.rmtree(file.parent)
    return StageSpeed(
        num_bytes, *(num_bytes / seconds for seconds in (copy, sha256, shm, upload, http))
    )


async def _median_s(work: Callable[[], Awaitable[None]], rounds: int) -> float:
    seconds = []
    for _ in range(rounds):
        started_at = time.perf_counter()
        await work()
        seconds.append(time.perf_counter() - started_at)
    return float(np.median(seconds))


def _copy_s(source: "np.ndarray[tuple[int], np.dtype[np.float32]]", rounds: int) -> float:
    target = np.ones_like(source)  # written, so that its pages are there
    seconds = []
    for _ in range(rounds):
        started_at = time.perf_counter()
        np.copyto(target, source)
        seconds.append(time.perf_counter() - started_at)
    return float(np.median(seconds))


async def _hash(data: "np.ndarray[tuple[int], np.dtype[np.float32]]") -> None:
    hashlib.sha256(data.data)


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
    async def upload(incarnation: int, policy_version: int, request: Request) -> None:
        await updater.upload(Version(incarnation, policy_version), request.stream())

    with bind(app, settings.rollout.url) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
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
) -> WeightManifest:
    file = shm_file(settings.run.name, Version(1, 1))
    file.parent.mkdir(mode=0o700)
    save_file({f"t{i}": array for i in range(num_tensors)}, file)
    digest = hashlib.sha256(array.tobytes()).hexdigest()
    entry = TensorEntry(shape=list(array.shape), dtype="float32", sha256=digest)
    return WeightManifest(
        policy_version=1,
        incarnation=1,
        step=1,
        vision_trained=True,
        tensors={f"t{i}": entry for i in range(num_tensors)},
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--tensors", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    speed = asyncio.run(measure_stage(options.mib, options.tensors, options.rounds))
    print(f"{speed.num_bytes / GB:.2f} GB in {options.tensors} tensors")
    print("\n".join(speed.lines()))


if __name__ == "__main__":
    main()
