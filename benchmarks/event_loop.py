"""How long a rollout server's event loop is held while it takes in large images.

    python benchmarks/event_loop.py --model assets/toy-start

Sends requests with a 4000x3000 JPEG each, all at once, to a server of its own, and reads
`rollout_event_loop_lag_seconds` before and after: every 20 ms one observation, each as long as a
task that could run had to wait. On few cores that includes what the system gives to others.
"""

import argparse
import asyncio
import base64
import io
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

from scene_data.templates import prompt_messages
from scene_graph.boxes import RELATIVE_1000
from services.host.ports import free_port
from services.http.clients.rollout import RolloutClient
from services.schemas.common import Sampling
from services.schemas.rollouts import InlineImage, RolloutRequest
from services.settings import Settings, dump_settings

METRIC = "rollout_event_loop_lag_seconds"


def main() -> None:
    """Start a server, load it, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("assets/toy-start"))
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        settings = _settings(options.model, Path(folder))
        config = Path(folder) / "run.toml"
        config.write_text(dump_settings(settings))
        command = [sys.executable, "-m", "cli.main", "serve", "rollout", "-c", str(config)]
        with (Path(folder) / "log").open("w") as log:
            server = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            _wait_ready(settings.rollout.url, server)
            asyncio.run(_measure(settings.rollout.url, options.requests, options.rounds))
        finally:
            server.terminate()
            server.wait()


async def _measure(url: str, num_requests: int, rounds: int) -> None:
    async with RolloutClient(url) as client:
        await client.rollouts(_request(0))  # vLLM compiles some things at the first token
        print("idle, 5 s:       ", end="")
        before = _buckets(url)
        await asyncio.sleep(5)
        _report(before, _buckets(url))
        for index in range(rounds):
            requests = [_request(1 + index * num_requests + i) for i in range(num_requests)]
            before, started = _buckets(url), time.perf_counter()
            await asyncio.gather(*(client.rollouts(request) for request in requests))
            seconds = time.perf_counter() - started
            print(f"{num_requests} images, {seconds:4.1f} s:", end=" ")
            _report(before, _buckets(url))


def _report(before: dict[float, float], after: dict[float, float]) -> None:
    grown = {edge: after[edge] - before[edge] for edge in sorted(after)}
    total = grown[float("inf")]
    longest = next(edge for edge, count in grown.items() if count == total)
    late = total - grown[0.05]
    print(f"{total:.0f} ticks, {late:.0f} over 50 ms, the longest up to {longest * 1e3:g} ms")


def _buckets(url: str) -> dict[float, float]:
    """Cumulative counts by upper edge, in seconds."""
    rows = httpx.get(f"{url}/metrics", trust_env=False).text.splitlines()
    found = (row.split('"') for row in rows if row.startswith(f"{METRIC}_bucket"))
    return {float(edge): float(rest.rpartition(" ")[2]) for _, edge, rest in found}


def _request(seed: int) -> RolloutRequest:
    """An image of its own each time: one that came before is not processed again."""
    coarse = np.random.default_rng(seed).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((4000, 3000), Image.Resampling.BICUBIC).save(buffer, "JPEG")
    return RolloutRequest(
        messages=prompt_messages("toy", RELATIVE_1000),
        images=[InlineImage(data=base64.b64encode(buffer.getvalue()).decode())],
        sampling=Sampling(n=2, max_tokens=16),
    )


def _settings(model: Path, folder: Path) -> Settings:
    return Settings.model_validate(
        {
            "run": {"name": "event-loop", "root": str(folder)},
            "model": {"path": str(model), "dtype": "float32"},
            "data": {"train": "unused"},
            "redis": {"url": "redis://127.0.0.1:1/0"},
            "rollout": {
                "url": f"http://127.0.0.1:{free_port()}",
                "max_model_len": 1024,
                "enforce_eager": True,
            },
        }
    )


def _wait_ready(url: str, server: "subprocess.Popen[bytes]") -> None:
    while server.poll() is None:
        try:
            if httpx.get(f"{url}/readyz", trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    sys.exit("the server ended before it was ready")


if __name__ == "__main__":
    main()
