"""Shared by tests with real services."""

from collections.abc import Iterator

import pytest

from services.redis.keys import RunKeys
from tests.shm_versions import ShmRun


@pytest.fixture
def shm_run(run_keys: RunKeys) -> Iterator[ShmRun]:
    run = ShmRun(run_keys.prefix.split(":")[1])
    yield run
    run.clean()
