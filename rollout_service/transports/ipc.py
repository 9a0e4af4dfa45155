"""`ipc`: trainer and server on one GPU; the tensors are where the trainer keeps them."""

from collections.abc import Set

from rollout_service.engine import Engine, IpcWeights
from rollout_service.transports.base import Staged, Transport
from services.errors import InvalidInputError
from services.schemas.weights import CommitRequest, StageRequest


class StagedHandles(Staged):
    """Names that the commit has to give handles for."""

    attempts = 1

    def __init__(self, names: Set[str], gpu: str) -> None:
        self._names = names
        self._gpu = gpu

    def weights(self, request: CommitRequest) -> IpcWeights:
        """See `Staged.weights`."""
        handles = request.ipc_handles or {}
        differing = sorted(handles.keys() ^ self._names)
        if differing:
            raise InvalidInputError(
                f"ipc_handles and the manifest differ in {len(differing)} tensors, such as "
                f"{differing[0]}: send a handle for each tensor"
            )
        elsewhere = {bare(handle.gpu) for handle in handles.values()} - {bare(self._gpu)}
        if elsewhere:
            raise InvalidInputError(
                f"the handles are of GPU {sorted(elsewhere)[0]}; this server is on {self._gpu}"
            )
        return IpcWeights(handles=handles)


class IpcTransport(Transport):
    """Stage agrees on the manifest; the handles come with the commit."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def stage(self, request: StageRequest) -> StagedHandles:
        """See `Transport.stage`."""
        if self._engine.gpu is None:
            raise InvalidInputError("this server has no GPU: use shm or http instead of ipc")
        return StagedHandles(request.manifest.tensors.keys(), self._engine.gpu)


def bare(gpu: str) -> str:
    """A GPU's UUID as torch writes it; NVML puts `GPU-` in front."""
    return gpu.removeprefix("GPU-")
