"""Packages for GPUs do not train on the CPU unasked; `tests/cuda` has those packages."""

import pytest
import torch

from services.errors import SettingsError
from trainer.policy.gpu import check_cuda


def test_a_gpu_that_cannot_be_used_ends_the_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    check_cuda()
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(SettingsError, match=r"built for CUDA 13\.0 and cannot use a GPU") as caught:
        check_cuda()
    assert "\n" not in caught.value.message
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    check_cuda()
