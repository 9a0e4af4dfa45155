"""Tensors on their way out: copies, a bucket at a time; what transports hold of them, and where."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from services.schemas.weights import Version
from services.settings import Settings
from trainer.policy.export import exported, exported_parameters, num_bytes
from weight_sync.transports import device
from weight_sync.transports.host import has_room, on_host
from weight_sync.transports.nccl import NcclSender


class Sharded:
    """Parameters that are whole only while they are gathered."""

    def __init__(self, model: nn.Module) -> None:
        self.buckets: list[int] = []
        self._whole = {id(p): p.data for p in model.parameters()}
        for parameter in model.parameters():
            vars(parameter)["ds_numel"] = parameter.numel()  # as DeepSpeed does
            parameter.data = torch.empty(0)

    @contextmanager
    def __call__(self, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
        self.buckets.append(len(parameters))
        for parameter in parameters:
            parameter.data = self._whole[id(parameter)]
        yield
        for parameter in parameters:
            parameter.data.zero_()  # as if the memory went to the next ones
            parameter.data = torch.empty(0)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_was_taken_outlives_its_bucket(dtype: torch.dtype) -> None:
    net = model()
    expected = {name: p.detach().to(dtype, copy=True) for name, p in net.named_parameters()}
    parameters = exported_parameters(net, adapter_only=False, trainable_only=True)
    gather = Sharded(net)
    taken = dict(exported(parameters, gather=gather, bucket_bytes=1, dtype=dtype, wanted=True))
    assert gather.buckets == [1, 1, 1, 1]
    assert taken.keys() == expected.keys()
    assert all(torch.equal(taken[name], expected[name]) for name in expected)


def test_a_rank_that_gets_nothing_gathers_all_the_same() -> None:
    net = model()
    parameters = exported_parameters(net, adapter_only=False, trainable_only=True)
    gather = Sharded(net)
    taken = exported(
        parameters, gather=gather, bucket_bytes=2**30, dtype=torch.float32, wanted=False
    )
    assert list(taken) == []
    assert gather.buckets == [4]


def test_of_tensors_that_another_rank_keeps_there_are_shape_and_dtype() -> None:
    net = model()
    expected = {name: p.detach().clone() for name, p in net.named_parameters()}
    parameters = exported_parameters(net, adapter_only=False, trainable_only=True)
    sizes = {name: num_bytes(parameter, torch.bfloat16) for name, parameter in parameters}
    gather = Sharded(net)
    taken = dict(
        exported(
            parameters,
            gather=gather,
            bucket_bytes=1,
            dtype=torch.bfloat16,
            wanted=True,
            kept={"0.weight"},
        )
    )
    assert torch.equal(taken.pop("0.weight"), expected["0.weight"].bfloat16())
    assert list(taken) == ["0.bias", "1.weight", "1.bias"]
    for name, tensor in taken.items():
        assert (tensor.device.type, tensor.dtype) == ("meta", torch.bfloat16)
        assert (tensor.shape, tensor.nbytes) == (expected[name].shape, sizes[name])


def test_what_is_on_the_host_is_not_copied_again() -> None:
    tensor = torch.ones(2)
    assert [(name, t is tensor) for name, t in on_host([("a", tensor)])] == [("a", True)]
    assert has_room(torch.device("cpu"))


def test_a_gpu_keeps_what_it_has_room_for_until_the_servers_have_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[float] = []

    def kept_on_host(tensor: Tensor) -> Tensor:
        moved.append(tensor.item())
        return tensor.clone()

    room = iter([True, False, True])
    monkeypatch.setattr(device, "has_room", lambda _: next(room))
    monkeypatch.setattr(device, "kept_on_host", kept_on_host)
    tree = {"model": {"path": "m"}, "data": {"train": "t"}, "run": {"root": str(tmp_path)}}
    transport = NcclSender(Settings.model_validate(tree))
    names = "abc"
    prepared = transport.prepare(
        ((n, torch.tensor(float(i))) for i, n in enumerate(names)), Version(1, 1)
    )
    assert list(prepared.tensors) == list(names)
    assert moved == [1.0]
    transport.settle()
    assert moved == [1.0, 0.0, 1.0, 2.0]
    transport.close()
