"""How long servers wait for prompts without lag: made when they may be asked for, or a step ahead.

    python -m benchmarks.prompts_ahead                     # 64 groups of photos of 1,024 x 768

A step of groups is asked for once the version before it is published. `when asked` is how it was:
each image is then read, decoded and hashed, one after the other. `ahead` is what the trainer does:
that was done while the step trained, of which this leaves out everything but its time. Both ask the
real Redis for the same groups. Prints the seconds until the last group of a step is on the queue,
the median of some steps, and what that leaves idle of servers that sample a group in a second.
"""

import argparse
import asyncio
import io
import tempfile
import time
from collections.abc import Sequence
from statistics import median

import numpy as np
from PIL import Image

from benchmarks.many_servers import redis_server
from scene_data.dataset import Sample
from scene_data.toy.scenes import toy_scene
from services.bundled import toy_start
from services.redis.client import connect
from services.redis.keys import RunKeys
from services.redis.queue import RedisQueue
from services.settings import Settings
from services.telemetry import Tracing
from trainer.batches.images import ImageCheck
from trainer.collection.cursor import Cursor
from trainer.collection.group_pool import GroupPool
from trainer.collection.image_sharing import ImageSharing
from trainer.collection.prompts import PromptSource
from trainer.collection.requests import GroupRequests
from trainer.policy.model import load_processor
from trainer.records.tracing import SERVICE, GroupTraces

WIDTH, HEIGHT = 1024, 768
NUM_IMAGES = 16
"""Different ones; rows take turns."""
STEPS = 5
TRAIN_S = 4.0
SAMPLING_S = 1.0
NUM_SERVERS = 8


class WhenAsked(GroupRequests):
    """As it was: nothing is made before there is room."""

    async def fill(self) -> None:
        """Make and ask, one after the other."""
        async with self.lock:
            while self.pool.has_room:
                position = next(self.cursor)
                prompt, source = await asyncio.to_thread(self.prompts.prompt, position)
                prompt = self.traces.begin(prompt)
                self.pool.add(position, prompt, source)
                await self._ask(prompt)


def photo(seed: int) -> Sample:
    """A JPEG of about 250 kB: blurred noise."""
    coarse = np.random.default_rng(seed).integers(0, 256, (HEIGHT // 4, WIDTH // 4, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((WIDTH, HEIGHT)).save(buffer, "JPEG", quality=92)
    return Sample(
        image_id=str(seed),
        image_bytes=buffer.getvalue(),
        width=WIDTH,
        height=HEIGHT,
        graph=toy_scene(0, 0, heldout=False),
    )


async def asked_after(
    kind: type[GroupRequests], settings: Settings, samples: Sequence[Sample]
) -> list[float]:
    """For each group of a step, seconds until it was on the queue; the median of the steps."""
    redis, keys = connect(settings.redis), RunKeys(settings.run.name)
    check = ImageCheck(load_processor(settings))
    prompts = PromptSource(settings, samples, [7], check)  # type: ignore[arg-type]
    times: list[float] = []

    class Queue(RedisQueue):
        async def enqueue(self, stream: str, work_id: str, body: bytes) -> bool:
            done = await super().enqueue(stream, work_id, body)
            times.append(time.perf_counter())
            return done

    requests = kind(
        Queue(redis, keys),
        GroupPool(settings.trainer, settings.algorithm),
        prompts,
        Cursor(),
        ImageSharing(settings, redis),
        GroupTraces(Tracing(SERVICE, None)),
        num_ahead=settings.trainer.groups_per_step,
    )
    await requests.fill()  # the run's first step, for which nothing is made ahead
    steps = []
    for _ in range(STEPS):
        await asyncio.sleep(TRAIN_S)
        for prompt in requests.pool.unanswered():
            requests.pool.close(prompt.work_id)
        times.clear()
        began = time.perf_counter()
        await requests.fill()
        steps.append([at - began for at in times])
    requests.close()
    await redis.aclose()
    return [median(each) for each in zip(*steps, strict=True)]


def sampled_after(asked: Sequence[float]) -> float:
    """Seconds until `NUM_SERVERS` have sampled all, one group at a time each."""
    free = [0.0] * NUM_SERVERS
    for at in asked:
        free.sort()
        free[0] = max(free[0], at) + SAMPLING_S
    return max(free)


def main() -> None:
    """Print both ways."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--groups", type=int, default=64)
    groups = parser.parse_args().groups
    samples = [photo(i) for i in range(NUM_IMAGES)] * (1 + groups * (STEPS + 2) // NUM_IMAGES)
    last: dict[str, tuple[float, float]] = {}
    with redis_server() as url, tempfile.TemporaryDirectory() as folder:
        for name, kind in (("when asked", WhenAsked), ("ahead", GroupRequests)):
            settings = Settings.model_validate(
                {
                    "run": {"name": name.replace(" ", "-"), "root": folder},
                    "model": {"path": str(toy_start())},
                    "data": {"train": "unused", "template": "toy"},
                    "redis": {"url": url},
                    "trainer": {"groups_per_step": groups, "max_policy_lag": 0},
                }
            )
            asked = asyncio.run(asked_after(kind, settings, samples))
            last[name] = asked[-1], sampled_after(asked)
    size = len(samples[0].image_bytes) / 1000
    print(f"{groups} groups a step, images of {size:.0f} kB; a step trains {TRAIN_S:g} s")
    print(f"{'':12} {'all asked, s':>13} {f'all sampled by {NUM_SERVERS}, s':>20}")
    for name, (asked_s, sampled_s) in last.items():
        print(f"{name:12} {asked_s:13.3f} {sampled_s:20.2f}")
    before, now = last.values()
    print(f"{'ratio':12} {before[0] / now[0]:13.1f} {before[1] / now[1]:20.2f}")


if __name__ == "__main__":
    main()
