"""One rank of a trainer that gives servers a version over `ipc`; its GPU memory is made up."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from scene_data.dataset import open_dataset
from services.settings import load_settings
from tests.alone import first_start
from trainer.collection.prompts import PromptSource
from trainer.connection import ServiceConnection
from trainer.ranks.group import Ranks, launched_as
from weight_sync.publishing import publisher
from weight_sync.transports import ipc
from weight_sync.transports.ipc import IpcSender


def weights() -> Iterator[tuple[str, Tensor]]:
    yield from (("a", torch.ones(2, 3)), ("b", torch.zeros(4)))


def make_up_gpu(rank: int) -> None:
    """Handles of its memory say whose it is."""

    def reduce_tensor(tensor: Tensor) -> tuple[None, tuple[Any, ...]]:
        place = (tensor.size(), tensor.stride(), 0, type(tensor.untyped_storage()), tensor.dtype, 0)
        memory = bytes([rank]) * 64
        return None, (type(tensor), *place, memory, tensor.nbytes, 0, False, b"c", 0, b"e", True)

    vars(ipc)["reduce_tensor"] = reduce_tensor
    vars(publisher)["make_sender"] = IpcSender
    cuda: Any = torch.cuda
    cuda.get_device_properties = lambda _: SimpleNamespace(uuid=str(rank))
    cuda.ipc_collect = lambda: None


def main(config: Path) -> None:
    settings = load_settings([config])
    make_up_gpu(launched_as()[0])
    dist.init_process_group("gloo")
    prompts = PromptSource(settings, open_dataset(settings.data.train), [999])
    ranks = Ranks(60)
    with ServiceConnection(settings, prompts, first_start(settings, ranks), ranks) as link:
        link.start(weights(), 0)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
