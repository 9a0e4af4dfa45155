"""The packages for GPUs, which `make check-cuda` installs apart; no test here needs a GPU."""

from pathlib import Path

import pytest

from planning.preflight.driver import torch_cuda

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch_cuda() is None:
        reason = "the packages here are for CPUs: `make check-cuda` installs those for GPUs"
        for item in items:
            if item.path.is_relative_to(HERE):
                item.add_marker(pytest.mark.skip(reason=reason))
