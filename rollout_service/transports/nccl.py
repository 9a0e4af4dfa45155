"""`nccl`: the trainer broadcasts from its GPU while this server commits."""

from rollout_service.engine import BroadcastWeights, Engine
from rollout_service.transports.base import Staged, Transport
from services.errors import InvalidInputError
from services.schemas.weights import CommitRequest, Rendezvous, StageRequest


class StagedBroadcast(Staged):
    """What the trainer will send."""

    attempts = 1

    def weights(self, request: CommitRequest) -> BroadcastWeights:
        """See `Staged.weights`."""
        return BroadcastWeights()


class NcclTransport(Transport):
    """Joins the trainer's group at the first stage, and again whenever it is a new one."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._joined: Rendezvous | None = None

    async def stage(self, request: StageRequest) -> StagedBroadcast:
        """See `Transport.stage`."""
        assert request.rendezvous is not None  # `StageRequest` checks it
        if self._engine.gpu is None:
            raise InvalidInputError("this server has no GPU: use shm or http instead of nccl")
        if request.rendezvous != self._joined:
            self._joined = None
            await self._engine.connect(request.rendezvous)
            self._joined = request.rendezvous
        return StagedBroadcast()
