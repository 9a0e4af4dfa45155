"""The plan against the real loop, and what one group and one server cost rank 0.

python benchmarks/plan.py             # both
python benchmarks/plan.py --costs     # the second alone, half a minute

The costs are those of the trainer's own code at the sizes of a large run: groups of eight
completions of 600 tokens, a manifest of 700 tensors. `planning/simulation/derive.py` takes rank
0's rates from here.
"""

import argparse
import asyncio
import logging
import multiprocessing
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `tests`, which is not installed

from scene_data.dataset import open_dataset
from scene_data.toy.scenes import make_toy
from services.host.ports import free_port
from services.redis.client import redis_answers
from services.redis.server import redis_server_command
from services.schemas.common import ChatMessage, Sampling, TextPart
from services.schemas.prompts import PromptGroup
from services.schemas.rollouts import RolloutGroup
from services.schemas.weights import PolicyInfo, ServerRecord, TensorEntry, WeightManifest
from services.settings import Settings
from tests.plan.real_loop import Numbers, run_all, services
from tests.train_groups import completion
from trainer.collection.group_checks import refusal
from trainer.collection.group_pool import GroupPool
from trainer.collection.prompts import PromptSource
from weight_sync.transports.sender import CheckedManifest, Peer

NUM_COMPLETIONS, NUM_TOKENS = 8, 600
NUM_TENSORS = 700
NUM_OPEN = (64, 1024, 4096)
NUM_CALLS = 200


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--costs", action="store_true", help="rank 0's costs alone")
    arguments = parser.parse_args()
    print(f"python benchmarks/plan.py   # {platform.machine()}, {os.cpu_count()} cores, no GPU")
    with tempfile.TemporaryDirectory() as folder:
        if not arguments.costs:
            validate(Path(folder))
        costs(Path(folder))


# Against the real loop


def validate(folder: Path) -> None:
    """Print what was predicted of each regime, and what was seen."""
    print(f"\n{'real / predicted':<24}{'steps/h':>13}{'trainer idle':>16}{'sampler idle':>16}  lag")
    with redis_server(folder) as url, services(folder, url) as settings:
        for seen in run_all(settings):
            real, said = seen.numbers, seen.predicted()
            print(
                f"{seen.regime!s:<24}{real.steps_per_hour:6.0f} {said.steps_per_hour:6.0f}"
                f"{real.trainer_idle:9.1%} {said.trainer_idle:6.1%}"
                f"{real.sampler_idle:9.1%} {said.sampler_idle:6.1%}  {_lags(real)} / {_lags(said)}"
            )


def _lags(numbers: Numbers) -> str:
    return ", ".join(f"{lag}: {share:.0%}" for lag, share in sorted(numbers.lags.items()))


@contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """A server of our own."""
    port = free_port()
    (folder / "redis").mkdir()
    command = redis_server_command(folder / "redis", port)
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    url = f"redis://127.0.0.1:{port}/0"
    while not redis_answers(url):
        time.sleep(0.05)
    try:
        yield url
    finally:
        server.kill()
        server.wait()


# Rank 0


def costs(folder: Path) -> None:
    """Print what rank 0 does for each group and each server."""
    body = group(0).model_dump_json().encode()
    print(f"\na group: {len(body) / 1e3:.0f} kB")
    print(f"read and check a group        {seconds(lambda: _read(body)) * 1e3:8.2f} ms")
    for number in NUM_OPEN:
        each = seconds(pool_of(number))
        print(f"count {number:5} open groups        {each * 1e3:8.2f} ms, for every group")
    print(f"make a prompt                 {seconds(prompts(folder)) * 1e3:8.2f} ms")
    print(f"call a server with a manifest {call_s() * 1e3:8.2f} ms")


def seconds(work: Callable[[], object], for_s: float = 2.0) -> float:
    """Seconds of one call, on average."""
    work()
    began, number = time.perf_counter(), 0
    while time.perf_counter() - began < for_s:
        work()
        number += 1
    return (time.perf_counter() - began) / number


def group(number: int) -> RolloutGroup:
    """One of a large run."""
    rng = random.Random(number)
    answers = [
        completion(
            [rng.randrange(150_000) for _ in range(NUM_TOKENS)],
            [-rng.expovariate(2) for _ in range(NUM_TOKENS)],
        ).model_copy(update={"text": "x" * 3 * NUM_TOKENS})
        for _ in range(NUM_COMPLETIONS)
    ]
    return RolloutGroup(
        group_id=f"g{number}",
        attempt=0,
        incarnation=1,
        server_id="s",
        prompt_token_ids=[rng.randrange(150_000) for _ in range(1000)],
        completions=answers,
        sampling_s=1.0,
    )


def _read(body: bytes) -> None:
    found = RolloutGroup.model_validate_json(body)
    assert (
        refusal(
            found,
            group_size=NUM_COMPLETIONS,
            newest_policy_version=1,
            suppressed_token_ids=frozenset((151_655,)),
        )
        is None
    )


def pool_of(number: int) -> Callable[[], object]:
    """What the collector does with its pool for each group that comes: it counts them."""
    settings = Settings.model_validate(
        {"model": {"path": "none"}, "data": {"train": "x"}, "trainer": {"groups_per_step": number}}
    )
    pool = GroupPool(settings.trainer, settings.algorithm)
    for position in range(number):
        prompt = PromptGroup(
            group_id=f"g{position}",
            incarnation=1,
            epoch=0,
            index=position,
            messages=[ChatMessage(role="user", content=[TextPart(text="What?")])],
            images=[],
            sampling=Sampling(n=1, max_tokens=1),
        )
        pool.add(position, prompt, None)
    return lambda: pool.num_sampling


def prompts(folder: Path) -> Callable[[], object]:
    """Makes the prompts of a dataset, one a call."""
    make_toy(folder / "made", num_train=64, num_heldout=2)
    path = folder / "made/train.parquet"
    settings = Settings.model_validate(
        {"run": {"root": folder}, "model": {"path": "none"}, "data": {"train": str(path)}}
    )
    source = PromptSource(settings, open_dataset(str(path)), [])
    positions = iter(range(1 << 30))

    def make() -> object:
        position = next(positions)
        return source.prompt(position)

    return make


def call_s() -> float:
    """Seconds of this process for one of a version's calls, many servers at a time."""
    port = free_port()
    process = multiprocessing.get_context("spawn").Process(target=answer, args=(port,))
    process.start()
    try:
        return asyncio.run(_calls(port))
    finally:
        process.kill()
        process.join()


async def _calls(port: int) -> float:
    entry = TensorEntry(shape=[4096, 4096], dtype="bfloat16", digest="0" * 64)
    names = [f"model.language_model.layers.{i}.mlp.down_proj.weight" for i in range(NUM_TENSORS)]
    manifest = WeightManifest(
        policy_version=1,
        incarnation=1,
        step=1,
        vision_trained=True,
        tensors=dict.fromkeys(names, entry),
    )
    settings = Settings.model_validate({"model": {"path": "none"}, "data": {"train": "x"}})
    record = ServerRecord(
        server_id="s",
        url=f"http://127.0.0.1:{port}",
        host="here",
        gpu=None,
        state="ready",
        policy_version=0,
        tokens_per_s=0,
        groups_done=0,
    )
    request = CheckedManifest.of(manifest).stage("disk")
    peer = Peer(record, settings)
    logging.disable()  # until it listens
    while not await peer.tell(lambda client: client.stage(request)):  # noqa: ASYNC110
        await asyncio.sleep(0.1)
    began = time.process_time()
    await asyncio.gather(
        *(peer.tell(lambda client: client.stage(request)) for _ in range(NUM_CALLS))
    )
    return (time.process_time() - began) / NUM_CALLS


def answer(port: int) -> None:
    """A server that says yes to everything, in a process of its own."""
    said = PolicyInfo(
        server_id="s",
        model="m",
        dtype="bfloat16",
        policy_version=0,
        incarnation=1,
        checksum=None,
        staged_version=1,
        state="ready",
    ).model_dump_json()
    head = (
        f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(said)}\r\n\r\n"
    )

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        length = next(
            int(line.split(b":")[1])
            for line in request.split(b"\r\n")
            if line.lower().startswith(b"content-length")
        )
        await reader.readexactly(length)
        writer.write((head + said).encode())
        await writer.drain()
        writer.close()

    async def serve() -> None:
        server = await asyncio.start_server(one, "127.0.0.1", port, backlog=1024)
        await server.serve_forever()

    asyncio.run(serve())


if __name__ == "__main__":
    main()
