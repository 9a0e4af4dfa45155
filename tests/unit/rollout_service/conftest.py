"""A run of its own in shared memory, for each test."""

import uuid
from collections.abc import Iterator

import pytest

from tests.shm_versions import ShmRun


@pytest.fixture
def shm_run() -> Iterator[ShmRun]:
    run = ShmRun(f"test-{uuid.uuid4().hex[:12]}")
    yield run
    run.clean()
