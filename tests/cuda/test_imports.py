"""Every module of ours loads beside the packages for GPUs; where no GPU is, it says so."""

import importlib

import pytest
import torch

from services.errors import EngineError, SettingsError
from tests.cuda.modules import own_modules
from trainer.policy.gpu import check_cuda


@pytest.mark.parametrize("module", own_modules())
def test_it_loads(module: str) -> None:
    importlib.import_module(module)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_nothing_runs_on_the_cpu_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    from rollout_service.vllm.cuda import own_gpus, why_not

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(SettingsError, match="cannot use a GPU here: Found no NVIDIA driver"):
        check_cuda()
    with pytest.raises(EngineError, match="vLLM is built for CUDA and finds no GPU"):
        own_gpus(1)
    assert why_not(RuntimeError("Engine core initialization failed.")).startswith(
        "torch cannot use the GPU: Found no NVIDIA driver"
    )
