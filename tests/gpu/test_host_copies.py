"""A GPU's tensors on the host: through page-locked memory, in another thread, with old values.

Run it with `pytest tests/gpu`; one GPU is enough.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from torch import Tensor, nn

from services.schemas.weights import Version
from services.settings import Settings
from trainer.policy.export import exported, exported_parameters
from weight_sync.publishing.handover import Handover
from weight_sync.transports.host import has_room, kept_on_host, on_host
from weight_sync.transports.nccl import NcclSender

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
SIDE, LAYERS = 2048, 12
BUSY_CYCLES = 500_000_000
"""A few tenths of a second of a GPU."""


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Linear(SIDE, SIDE, bias=False) for _ in range(LAYERS)]
    return nn.Sequential(*layers).to("cuda", torch.bfloat16)


def leaving(model: nn.Module) -> dict[str, Tensor]:
    """Copies on the host, taken by another thread; then the parameters change."""

    def whole(_: Sequence[nn.Parameter]) -> AbstractContextManager[None]:
        return nullcontext()

    handover = Handover()
    with ThreadPoolExecutor(1) as pool:
        sent = pool.submit(
            lambda: {name: (host.is_pinned(), host.clone()) for name, host in on_host(handover)}
        )
        torch.cuda._sleep(BUSY_CYCLES)  # what the step before has left to compute
        parameters = exported_parameters(model, adapter_only=False, trainable_only=True)
        handover.fill(
            exported(parameters, gather=whole, bucket_bytes=1, dtype=torch.bfloat16, wanted=True)
        )
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        taken = sent.result()
    assert all(is_pinned for is_pinned, _ in taken.values())
    return {name: tensor for name, (_, tensor) in taken.items()}


def test_the_host_gets_the_values_of_the_step_that_is_published(model: nn.Module) -> None:
    expected = {name: p.detach().cpu() for name, p in model.named_parameters()}
    taken = leaving(model)
    assert taken.keys() == expected.keys()
    assert all(torch.equal(taken[name], expected[name]) for name in expected)


def test_few_tensors_are_on_the_gpu_beside_the_model(model: nn.Module) -> None:
    leaving(model)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    leaving(model)
    assert torch.cuda.max_memory_allocated() - before <= 6 * SIDE * SIDE * 2


def test_a_version_leaves_the_gpu_once_it_is_served(model: nn.Module) -> None:
    tree = {"model": {"path": "m"}, "data": {"train": "t"}}
    transport = NcclSender(Settings.model_validate(tree))
    expected = {name: p.detach().cpu() for name, p in model.named_parameters()}
    transport.prepare(((n, p.detach().clone()) for n, p in model.named_parameters()), Version(1, 1))
    held = transport._tensors
    assert all(tensor.is_cuda for tensor in held.values()), "as handed over"
    transport.settle()
    assert not any(tensor.is_cuda or tensor.is_pinned() for tensor in transport._tensors.values())
    assert all(torch.equal(transport._tensors[name], expected[name]) for name in expected)
    transport.close()


def test_room_is_what_this_process_may_use() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    assert has_room(device)
    torch.cuda.set_per_process_memory_fraction(0.01, device)
    try:
        assert not has_room(device)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
    assert not kept_on_host(torch.ones(3, device=device)).is_pinned()
