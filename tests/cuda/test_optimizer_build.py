"""The optimizer of a run on GPUs is torch's own, and nothing is compiled for it.

Without a GPU, in an environment for CUDA: DeepSpeed is given what the trainer generates there, and
computes on the CPU.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import deepspeed
import pytest
import torch
from deepspeed.accelerator.cuda_accelerator import CUDA_Accelerator
from deepspeed.ops.op_builder.builder import OpBuilder
from torch import nn

from services.host.ports import free_port
from services.settings import Settings
from trainer.policy.deepspeed.api import guard_ops
from trainer.policy.deepspeed.config import deepspeed_config

pytestmark = pytest.mark.skipif(
    torch.version.cuda is None, reason="for torch's CUDA build: make check-cuda"
)
MODES: list[dict[str, Any]] = [
    {"zero_stage": 0},
    {"zero_stage": 1},
    {"zero_stage": 2},
    {"zero_stage": 3},
    {"zero_stage": 1, "offload_optimizer": True},
    {"zero_stage": 2, "offload_optimizer": True},
    {"zero_stage": 3, "offload_optimizer": True, "offload_parameters": True},
]
KERNEL = """
#include <cuda_bf16.h>
__global__ void twice(__nv_bfloat16* x) { x[threadIdx.x] = x[threadIdx.x] + x[threadIdx.x]; }
"""


@pytest.fixture(scope="module", autouse=True)
def alone() -> Iterator[None]:
    """This process is the only rank. DeepSpeed's own op of CPU ranks is none of a GPU's."""
    place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**place, "MASTER_PORT": str(free_port())}.items():
            patch.setenv(name, value)
        patch.setattr(sys.modules["deepspeed.comm.torch"], "build_shm_op", lambda: None)
        deepspeed.init_distributed("gloo", verbose=False)
        yield
        torch.distributed.destroy_process_group()


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of ops that are loaded by compiling them."""
    names: list[str] = []
    load = OpBuilder.jit_load

    def noted(builder: Any, verbose: bool = False) -> Any:
        names.append(builder.name)
        return load(builder, verbose)

    monkeypatch.setattr(OpBuilder, "jit_load", noted)
    return names


def config_for_gpus(patch: pytest.MonkeyPatch, dtype: str, **wanted: Any) -> dict[str, Any]:
    tree = {"model": {"path": "m", "dtype": dtype}, "data": {"train": "t"}, "deepspeed": wanted}
    with patch.context() as here:
        here.setattr(torch.cuda, "is_available", lambda: True)
        return deepspeed_config(Settings.model_validate(tree))


def one_step(config: dict[str, Any]) -> tuple[Any, torch.Tensor]:
    """DeepSpeed's engine after a step, and the weights then."""
    torch.manual_seed(0)
    model = nn.Linear(8, 8)
    dtype = torch.bfloat16 if config["bf16"]["enabled"] else torch.float32
    engine, *_ = deepspeed.initialize(
        model=model.to(dtype), model_parameters=list(model.parameters()), config=config
    )
    engine.backward(engine(torch.ones(4, 8, dtype=dtype)).square().sum())
    engine.step()
    with deepspeed.zero.GatheredParameters([model.weight], enabled=engine.zero_optimization()):
        weights = model.weight.detach().float().clone()
    engine.destroy()
    return engine, weights


@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_every_mode_trains_with_torchs_fused_adam_and_compiles_nothing(
    mode: dict[str, Any], dtype: str, compiled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, _ = one_step(config_for_gpus(monkeypatch, dtype, **mode))
    assert type(engine.basic_optimizer) is torch.optim.AdamW
    assert all(group["fused"] is True for group in engine.basic_optimizer.param_groups)
    assert compiled == []
    assert CUDA_Accelerator().create_op_builder("ShareMemCommBuilder") is None


def test_cpu_adam_builds_for_who_asks_for_it(
    tmp_path: Path, compiled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the C++ compiler alone: no CUDA_HOME is set. It moves weights as torch's does."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "ops"))
    monkeypatch.delenv("CUDA_HOME", raising=False)
    guard_ops()
    file = tmp_path / "deepspeed.json"
    file.write_text(json.dumps({"optimizer": {"params": {"torch_adam": False}}}))
    offload = {"zero_stage": 2, "offload_optimizer": True}
    engine, weights = one_step(
        config_for_gpus(monkeypatch, "float32", **offload, config_file=str(file))
    )
    assert type(engine.basic_optimizer).__name__ == "DeepSpeedCPUAdam"
    assert compiled == ["cpu_adam"]
    assert (tmp_path / "ops/cpu_adam/cpu_adam.so").is_file()
    _, torchs = one_step(config_for_gpus(monkeypatch, "float32", **offload))
    torch.testing.assert_close(weights, torchs, atol=1e-7, rtol=0)


def test_the_pinned_compiler_takes_the_pinned_headers(tmp_path: Path) -> None:
    """For whatever else compiles on a GPU machine; CUDA_HOME as the image has it."""
    cuda = Path(torch.__file__).parents[1] / "nvidia/cu13"
    source = tmp_path / "twice.cu"
    source.write_text(KERNEL)
    subprocess.run(
        [cuda / "bin/nvcc", "-arch=sm_90", "-c", source, "-o", tmp_path / "twice.o"], check=True
    )
