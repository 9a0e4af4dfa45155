"""A version as a delta against the same version whole: bytes, and seconds of each part.

    python -m benchmarks.delta [--layers 2] [--steps 20] [--rates 6e-7 1e-6 5e-6] [--rounds 3]

torch's own AdamW trains float32 masters of layers of Qwen2-VL-2B (47 million elements each, normal,
of spread 0.02) by gradients of noise with a small mean that stays. After `steps` of them, when its
moments are full, more steps are taken: what each changes in bfloat16 is a delta. All that a run
does with a version is done over `http` to one server with the fake engine, on real uvicorn, which
has the version before. Both encodings take turns with the same versions. The weights are there in
bfloat16 when the clock starts, as a trainer in bfloat16 has them after a step.

`export` is the trainer's prepare: compared, digested, written. `sent` is the upload, `staged` what
the server then does before the commit. Core seconds are those of all threads of this process: they
hardly depend on what else the machine does, as wall seconds do.
"""

import argparse
import asyncio
import os
import statistics
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, get_args

import torch
import uvicorn
from fastapi import Request
from torch import Tensor

from rollout_service.fake.engine import FakeEngine
from services.host.ports import free_port
from services.http.app import bind, create_app, server_config
from services.http.clients.rollout import RolloutClient
from services.http.raw_body import RawBody
from services.schemas.weights import Encoding, PolicyInfo, Version, WeightManifest
from services.settings import Settings
from weight_sync.transports.files import FileSender, delta_file
from weight_sync.transports.sender import CheckedManifest, Prepared, make_sender
from weight_sync.transports.uploads.spool import Spool
from weight_sync.updater import WeightUpdater

HIDDEN, MLP, KEYS = 1536, 8960, 256
SHAPES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (KEYS, HIDDEN),
    "self_attn.v_proj": (KEYS, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (MLP, HIDDEN),
    "mlp.up_proj": (MLP, HIDDEN),
    "mlp.down_proj": (HIDDEN, MLP),
    "input_layernorm": (HIDDEN,),
}
SPREAD = 0.02
MEAN = 0.1
"""Mean of a gradient, in its noise's spread."""


PARTS = ("export", "sent", "staged", "committed")


class Cost(NamedTuple):
    """Seconds of one version's parts, in the order of `PARTS`; of the clock or of cores."""

    export_s: float
    sent_s: float
    staged_s: float
    committed_s: float

    @classmethod
    def between(cls, times: Sequence[float]) -> "Cost":
        """Each part's, by the times at which they began and ended."""
        return cls(*(after - before for before, after in pairwise(times)))

    @classmethod
    def median(cls, costs: Sequence["Cost"]) -> "Cost":
        """Each part's median."""
        return cls(*map(statistics.median, zip(*costs, strict=True)))


class Trained:
    """Layers in training, and what is sampled with after each step."""

    def __init__(self, rate: float, num_layers: int) -> None:
        self._noise = torch.Generator().manual_seed(0)
        names = [
            (f"{i}.{name}", shape) for i in range(num_layers) for name, shape in SHAPES.items()
        ]
        self._masters = {
            name: torch.randn(shape, generator=self._noise).mul_(SPREAD) for name, shape in names
        }
        self._means = {
            name: torch.randn(master.shape, generator=self._noise).mul_(MEAN)
            for name, master in self._masters.items()
        }
        self._optimizer = torch.optim.AdamW(
            self._masters.values(), lr=rate, betas=(0.9, 0.95), weight_decay=0.0
        )
        self._weights = {n: master.to(torch.bfloat16) for n, master in self._masters.items()}

    def step(self, count: int = 1) -> None:
        """Take steps."""
        for _ in range(count):
            for name, master in self._masters.items():
                noise = torch.randn(master.shape, generator=self._noise)
                master.grad = noise.add_(self._means[name])
            self._optimizer.step()
        for name, master in self._masters.items():
            self._weights[name].copy_(master)

    def version(self) -> Iterator[tuple[str, Tensor]]:
        """The weights of now, in bfloat16."""
        yield from self._weights.items()


class Run:
    """A trainer's sender and a server, in one encoding."""

    def __init__(self, folder: Path, encoding: Encoding) -> None:
        self.settings = Settings.model_validate(
            {
                "run": {"name": f"{folder.name}-{encoding}", "root": str(folder)},
                "model": {"path": "none"},
                "data": {"train": "none"},
                "rollout": {"url": f"http://127.0.0.1:{free_port()}"},
                "weights": {"transport": "http", "encoding": encoding},
            }
        )
        sender = make_sender(self.settings)
        assert isinstance(sender, FileSender)
        self._sender = sender
        self._engine = FakeEngine(tokens_per_s=1.0, max_model_len=64)
        self._updater = WeightUpdater(self.settings, self._engine, Spool(self.settings))
        self._last: CheckedManifest | None = None
        self.prepared: Prepared

    async def publish(self, number: int, trained: Trained) -> tuple[Cost, Cost]:
        """From the step to served: seconds, and core seconds."""
        times: list[tuple[float, float]] = []

        def note() -> None:
            times.append((time.perf_counter(), time.process_time()))

        note()
        base = self._last.as_base if self._last else None
        version = Version(1, number)
        self.prepared = await asyncio.to_thread(
            self._sender.prepare, trained.version(), version, base
        )
        self._last = CheckedManifest.of(
            WeightManifest(
                policy_version=number,
                incarnation=1,
                step=number,
                vision_trained=True,
                algorithm="blake3",
                tensors=self.prepared.tensors,
                delta=self.prepared.base,
            )
        )
        note()
        file = self._sender.file(version)
        async with RolloutClient(self.settings.rollout.url, timeout_s=60) as client:
            await client.upload(delta_file(file) if self.prepared.base else file, version)
        note()
        await self._updater.stage(self._last.stage("http"))
        note()
        await self._updater.commit(self._last.commit())
        note()
        seconds, cores = zip(*times, strict=True)
        return Cost.between(seconds), Cost.between(cores)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator["Run"]:
        """The server takes uploads on real uvicorn, in a thread."""
        app = create_app(
            title="weights",
            readiness=lambda: None,
            body_limit_bytes=1000,
            streamed_paths=("/v1/weights/files",),
        )

        @app.put("/v1/weights/files/{incarnation}/{policy_version}")
        async def upload(incarnation: int, policy_version: int, request: Request) -> PolicyInfo:
            body = RawBody(request.scope, silence_s=60)
            await self._updater.upload(Version(incarnation, policy_version), body)
            return PolicyInfo(
                server_id="one",
                model="none",
                dtype="bfloat16",
                policy_version=0,
                incarnation=0,
                checksum=None,
                state="ready",
            )

        with bind(app, self.settings.rollout.url) as listener:
            server = uvicorn.Server(server_config(app))
            running = threading.Thread(target=server.run, args=([listener],))
            running.start()
            try:
                yield self
            finally:
                server.should_exit = True
                running.join()
                self._updater.close()
                self._sender.close()


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rates", type=float, nargs="+", default=[6e-7, 1e-6, 5e-6])
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for rate in arguments.rates:
        trained = Trained(rate, arguments.layers)
        trained.step(arguments.steps)
        with tempfile.TemporaryDirectory(prefix="sgg-bench-") as folder:
            asyncio.run(compare(rate, trained, Path(folder), arguments.rounds))


async def compare(rate: float, trained: Trained, folder: Path, rounds: int) -> None:
    """Print a rate's table: medians."""
    whole, delta = (Run(folder, encoding) for encoding in get_args(Encoding))
    costs: dict[Run, list[tuple[Cost, Cost]]] = {whole: [], delta: []}
    async with whole.serving(), delta.serving():
        for number in range(rounds + 2):
            for run, found in costs.items():
                found.append(await run.publish(number, trained))
            trained.step()
    share = delta.prepared.num_bytes / whole.prepared.num_bytes
    print(
        f"\nrate {rate:g}: {delta.prepared.changed_share:.2%} of the elements changed, a delta has "
        f"{share:.2%} of a whole version's bytes; load {os.getloadavg()[0]:.0f}\n"
    )
    print(f"| ms | {' | '.join(PARTS)} | together | whole takes, times as long |")
    print(f"|{(len(PARTS) + 3) * '---|'}")
    # The first version is whole; the second brings the trainer's and the server's pages in.
    for i, unit in enumerate(("", "core ")):
        of_whole, of_delta = (Cost.median([both[i] for both in costs[r][2:]]) for r in costs)
        for name, cost in (("whole", of_whole), ("delta", of_delta)):
            cells = " | ".join(f"{1e3 * seconds:.0f}" for seconds in (*cost, sum(cost)))
            print(f"| {unit}{name} | {cells} | {sum(of_whole) / sum(cost):.1f} |", flush=True)


if __name__ == "__main__":
    main()
