"""The packages for GPUs, which `make check-cuda` installs apart; no test here needs a GPU."""

import pytest

from launcher.preflight.driver import torch_cuda


@pytest.fixture(scope="session", autouse=True)
def packages_for_gpus() -> None:
    if torch_cuda() is None:
        pytest.skip("the packages here are for CPUs: `make check-cuda` installs those for GPUs")
