"""vLLM's configuration and worker for a GPU, from our arguments, up to where a device is needed."""

import json
import subprocess
import sys
from typing import Any

import pytest

from rollout_service.vllm_worker import BACKEND, WorkerExtension
from tests.cuda.modules import ROOT


def on_h100(**sections: dict[str, Any]) -> dict[str, Any]:
    settings = {"model": {"path": "assets/toy-start"}, "data": {"train": "unused"}} | sections
    done = subprocess.run(
        [sys.executable, "-m", "tests.cuda.h100_driver", json.dumps(settings)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return facts


@pytest.mark.parametrize("transport", ["nccl", "lora"])
def test_our_arguments_make_a_worker_for_gpus(transport: str) -> None:
    facts = on_h100(weights={"transport": transport}, rollout={"gpu_memory_utilization": 0.35})
    assert facts["worker"] == "vllm.v1.worker.gpu_worker.Worker"
    assert facts["backend"] == BACKEND
    assert facts["logprobs_mode"] == "processed_logprobs"
    assert facts["gpu_memory_utilization"] == 0.35
    assert facts["adapters"] == (1 if transport == "lora" else None)
    # What the extension's methods are called for, and what they use of the worker.
    ours = {name for name in vars(WorkerExtension) if not name.startswith("_")}
    theirs = {"weight_transfer_engine", "_weight_update_active", "get_model"}
    assert ours | theirs <= set(facts["worker_has"])
