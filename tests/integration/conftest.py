"""Shared by tests with real services."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import expect

from services.redis.keys import RunKeys
from tests.shm_versions import ShmRun

# A page on a machine where another suite runs; five seconds were too few.
expect.set_options(timeout=30_000)


@pytest.fixture
def shm_run(run_keys: RunKeys) -> Iterator[ShmRun]:
    run = ShmRun(run_keys.prefix.split(":")[1])
    yield run
    run.clean()
