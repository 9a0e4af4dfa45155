"""The server of `tests/e2e`, on a GPU, and for one file: the next file's has the GPU's memory."""

from collections.abc import Iterator

import pytest

from tests.e2e.conftest import ROOT, RunningServer, running_server


@pytest.fixture(scope="module")
def rollout_server(
    redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    model = ROOT / "assets/toy-start"
    with running_server(model, redis_url, tmp_path_factory.mktemp("rollout")) as server:
        yield server
