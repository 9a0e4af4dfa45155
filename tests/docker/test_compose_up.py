"""`docker compose up` on a real engine: the real trainer, reward service and Redis, the fake engine.

`make test-docker`. One start-up goes through everything that may happen to a run.
"""

import json
import os
import re
import secrets
import time
from collections.abc import Iterator

import httpx
import pytest

from tests.docker_stack import Stack, docker, stack, why_no_engine

NUM_STEPS = 400
"""More than are done before the last step of this test, which makes it fewer."""
PARTS = ("redis", "reward", "rollout", "trainer", "monitor")
UID = "10001"
WRITABLE = {
    "redis": {"/queue"},
    "reward": set[str](),
    "rollout": {"/cache"},
    "trainer": {"/cache", "/runs", "/dev/shm/sgg-chaos"},
    "monitor": set[str](),
}
EVERYWHERE = {"/tmp", "/dev/shm", "/dev/mqueue"}
"""In memory, and the container's own."""
STOPPED_WITH_CHECKPOINT = 75


def arguments(num_steps: int) -> str:
    """A fast run: no time is spent on what other tests look at."""
    return (
        f"--set rollout.engine=fake --set trainer.num_steps={num_steps} "
        "--set trainer.groups_per_step=4 --set trainer.group_size=4 --set trainer.checkpoint_every=2"
    )
