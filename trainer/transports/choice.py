"""The transport that a run's settings name."""

from services.schemas.weights import Transport
from services.settings import Settings
from trainer.transports.base import WeightTransport
from trainer.transports.device import refuse_without_gpu
from trainer.transports.disk import DiskTransport
from trainer.transports.http import HttpTransport
from trainer.transports.ipc import IpcTransport
from trainer.transports.lora import LoraTransport
from trainer.transports.nccl import NcclTransport
from trainer.transports.shm import ShmTransport

_TRANSPORTS: dict[Transport, type[WeightTransport]] = {
    "shm": ShmTransport,
    "disk": DiskTransport,
    "http": HttpTransport,
    "nccl": NcclTransport,
    "ipc": IpcTransport,
    "lora": LoraTransport,
}


def make_transport(settings: Settings) -> WeightTransport:
    """The sending side of `weights.transport`.

    Raises:
        SettingsError: This process cannot send that way.
    """
    name = settings.weights.transport
    if name in ("nccl", "ipc"):
        refuse_without_gpu(name)
    return _TRANSPORTS[name](settings)
