"""The transport that a run's settings name."""

from services.schemas.weights import Transport
from services.settings import Settings
from weight_sync.device import refuse_without_gpu
from weight_sync.disk import DiskTransport
from weight_sync.http import HttpTransport
from weight_sync.ipc import IpcTransport
from weight_sync.lora import LoraTransport
from weight_sync.nccl import NcclTransport
from weight_sync.sender import WeightTransport
from weight_sync.shm import ShmTransport

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
