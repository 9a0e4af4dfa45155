"""Hypothesis without clocks, and versions in shared memory."""

import uuid
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.shm_versions import ShmRun

# A slow or busy machine is no failure.
settings.register_profile("no-clock", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("no-clock")


@pytest.fixture
def shm_run() -> Iterator[ShmRun]:
    """A run of its own in shared memory, for each test."""
    run = ShmRun(f"test-{uuid.uuid4().hex[:12]}")
    yield run
    run.clean()
