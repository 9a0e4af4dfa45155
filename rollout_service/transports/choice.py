"""The transports that one server takes."""

from rollout_service.engine import Engine
from rollout_service.transports.base import Transport
from rollout_service.transports.disk import DiskTransport
from rollout_service.transports.http import HttpTransport
from rollout_service.transports.ipc import IpcTransport
from rollout_service.transports.lora import LoraTransport, adapted_layers
from rollout_service.transports.nccl import NcclTransport
from rollout_service.transports.shm import ShmTransport
from rollout_service.transports.spool import Spool
from services.errors import InvalidInputError
from services.schemas.weights import StageRequest
from services.schemas.weights import Transport as TransportName
from services.settings import Settings


class Transports:
    """All of them, whatever the settings name: a server can be given weights in any way.

    Only adapters are another matter. They belong to the weights that the server started with, so a
    server that serves them takes nothing else.
    """

    def __init__(self, settings: Settings, engine: Engine, spool: Spool) -> None:
        """Ready at once.

        Args:
            settings: Of the run.
            engine: Started.
            spool: For uploads; removed by `close`.
        """
        self.http = HttpTransport(spool, engine.num_elements)
        """Takes the uploads, for `lora` as well."""
        self._engine = engine
        self._spool = spool
        self._max_lora_rank = settings.rollout.max_lora_rank
        self._by_name: dict[TransportName, Transport]
        if settings.weights.transport == "lora":
            self._by_name = {"lora": LoraTransport(self.http, spool)}
        else:
            self._by_name = {
                "shm": ShmTransport(settings),
                "disk": DiskTransport(settings),
                "http": self.http,
                "nccl": NcclTransport(engine),
                "ipc": IpcTransport(engine),
            }

    def of(self, request: StageRequest) -> Transport:
        """The one that a request names.

        Raises:
            InvalidInputError: This server does not take it.
        """
        transport = self._by_name.get(request.transport)
        if transport is None:
            raise InvalidInputError(
                f"this server does not take {request.transport}, but {', '.join(self._by_name)}: "
                "it serves an adapter if, and only if, its weights.transport is lora"
            )
        return transport

    async def check(self, request: StageRequest) -> None:
        """Whether a version's tensors are those that the engine can load.

        Raises:
            InvalidInputError: They are not, or this server does not take the transport.
        """
        self.of(request)
        manifest = request.manifest
        shapes = {name: tuple(entry.shape) for name, entry in manifest.tensors.items()}
        if manifest.adapter is None:
            await self._engine.check_tensors(shapes, partial=manifest.partial)
            return
        if manifest.adapter.rank > self._max_lora_rank:
            raise InvalidInputError(
                f"the adapter's rank is {manifest.adapter.rank}; rollout.max_lora_rank is "
                f"{self._max_lora_rank}"
            )
        await self._engine.check_adapter(adapted_layers(shapes, manifest.adapter))

    def close(self) -> None:
        """Remove what was uploaded."""
        self._spool.remove()
