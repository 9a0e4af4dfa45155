"""What the sending end of a transport promises, and the servers as it sees them.

To add a transport: a line in `services.schemas.weights.TRANSPORTS`, and `weight_sync/NAME.py` with
its `NameSender` and `NameReceiver`.
"""

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar

from services.errors import SettingsError, SggError
from services.schemas.weights import (
    CommitRequest,
    DeltaBase,
    IpcHandle,
    PolicyInfo,
    PolicyRecord,
    Rendezvous,
    ServerRecord,
    StageRequest,
    TensorEntry,
    Transport,
    Version,
    WeightManifest,
    manifest_checksum,
)
from services.settings import Settings
from weight_sync.file_format import num_bytes

if TYPE_CHECKING:  # the receiving ends import neither
    from torch import Tensor

    from services.http.clients.rollout import RolloutClient

logger = logging.getLogger(__name__)

SERVER_TIMEOUT_S = 60.0
"""A server that takes this long over a step of an update, beside the time that its bytes need, is
left behind. One whose line is dead is found sooner (`services.http.raw_body.LINE_SILENCE_S`)."""
SLOWEST_BYTES_PER_S = 10e6
"""At which a version's bytes may go about before a server is given up: 100 Mbit/s."""
_ASK_TIMEOUT_S = 5.0


def moving_s(num_bytes: int) -> float:
    """Seconds that moving so many bytes may take, beyond what any answer may."""
    return num_bytes / SLOWEST_BYTES_PER_S


NamedTensors = Iterable[tuple[str, "Tensor"]]
"""Names and tensors of a whole version, on a GPU or the CPU. They belong to the end that takes
them."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A version that can be sent."""

    tensors: "dict[str, TensorEntry]"
    """The manifest's."""
    num_bytes: int
    """What is sent to a server, without a file's header."""
    base: DeltaBase | None = None
    """What was sent is a delta of it; None where it is whole."""
    changed_share: float | None = None
    """How many of its elements differ from the version before; None where not all were compared."""


def whole(tensors: "dict[str, TensorEntry]") -> Prepared:
    """A version all of whose elements are sent."""
    return Prepared(tensors, num_bytes(tensors.values()))


@dataclass(frozen=True, slots=True)
class Peer:
    """One rollout server. A failure of its own is a logged fact, never an exception."""

    record: ServerRecord
    settings: Settings

    async def tell(
        self,
        call: Callable[["RolloutClient"], Awaitable[PolicyInfo]],
        *,
        num_bytes: int = 0,
        otherwise: str = "is left behind",
    ) -> bool:
        """Whether the server did what it was asked, in time.

        Args:
            call: Asks it.
            num_bytes: What it has to move for that: the time for it grows with them.
            otherwise: What is said of a server that did not.
        """
        timeout_s = SERVER_TIMEOUT_S + moving_s(num_bytes)
        async with self.client(timeout_s) as client:
            try:
                await call(client)
            except SggError as error:
                logger.warning("%s %s: %s", self.record.url, otherwise, error)
                return False
            return True

    async def policy(self) -> PolicyInfo | None:
        """What the server serves; None where it does not answer at once."""
        async with self.client(_ASK_TIMEOUT_S) as client:
            try:
                return await client.policy()
            except SggError:
                return None

    async def falls_silent(self) -> None:
        """Wait until the server does not answer any more."""
        answers = True
        while answers:
            await asyncio.sleep(_ASK_TIMEOUT_S)
            answers = await self.policy() is not None

    async def can_take(self) -> bool:
        """Whether it answers and has its model: a version could be given to it now."""
        info = await self.policy()
        return info is not None and info.state not in ("starting", "draining")

    def client(self, timeout_s: float) -> "RolloutClient":
        """See `server_client`."""
        return server_client(self.record.url, self.settings, timeout_s)


def server_client(url: str, settings: Settings, timeout_s: float | None = None) -> "RolloutClient":
    """A client with both of the run's tokens, sent to a server that has proved itself.

    Args:
        url: The server's.
        settings: The run's.
        timeout_s: As `RolloutClient`'s; `SERVER_TIMEOUT_S` when None.
    """
    from services.http.clients.rollout import RolloutClient

    return RolloutClient(
        url,
        token=settings.data_token,
        admin_token=settings.admin_token,
        timeout_s=timeout_s or SERVER_TIMEOUT_S,
        registered=settings.security,
        pulse=True,
    )


@dataclass(frozen=True, slots=True)
class CheckedManifest:
    """A manifest with its checksum, and the requests made of it."""

    manifest: WeightManifest
    checksum: str

    @classmethod
    def of(cls, manifest: WeightManifest) -> "CheckedManifest":
        """With the manifest's checksum."""
        return cls(manifest, manifest_checksum(manifest))

    @property
    def version(self) -> Version:
        """Which one it is."""
        return replace(self.manifest.version, checksum=self.checksum)

    @property
    def as_base(self) -> DeltaBase:
        """What the next version would be a delta of."""
        delta, number = self.manifest.delta, self.manifest.policy_version
        chain = [*(delta.chain if delta is not None else ()), number]
        return DeltaBase(checksum=self.checksum, chain=chain)

    @property
    def num_bytes(self) -> int:
        """Bytes of its tensors, whole."""
        return num_bytes(self.manifest.tensors.values())

    def stage(self, transport: Transport, rendezvous: Rendezvous | None = None) -> StageRequest:
        """The request that brings it to a server."""
        return StageRequest(
            transport=transport,
            manifest=self.manifest,
            checksum=self.checksum,
            rendezvous=rendezvous,
        )

    def commit(self, ipc_handles: Sequence[dict[str, IpcHandle]] = ()) -> CommitRequest:
        """The request that has it served.

        Args:
            ipc_handles: With `ipc`: what is shared on each GPU of the server, by tensor name.
        """
        first, *more = ipc_handles or (None,)
        return CommitRequest(
            policy_version=self.manifest.policy_version,
            checksum=self.checksum,
            ipc_handles=first,
            more_ipc_handles=more,
        )

    def record(self, transport: Transport) -> PolicyRecord:
        """What is written down in Redis."""
        return PolicyRecord(**asdict(self.version), transport=transport)


class Sender(ABC):
    """The trainer's end of one transport, one version at a time.

    `prepare` takes its tensors, `stage` and `commit` give it to all live servers, `settle` ends
    that, and `seed` gives it to one that was not among them.
    """

    name: ClassVar[Transport]

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    @abstractmethod
    def prepare(
        self, weights: NamedTensors, version: Version, base: DeltaBase | None = None
    ) -> Prepared:
        """Take a version's tensors, before any server hears of it. They may change afterwards.

        Runs beside the training thread, which gathers tensors as they are taken here.

        Args:
            weights: Its tensors.
            version: Which one it is.
            base: With `weights.encoding = "delta"`: the version that was prepared before, to send
                what differs from it, where that pays. None to send all.

        Raises:
            UnavailableError: They cannot be kept.
            WaitTimeoutError: There was no room for them for `trainer.wait_timeout_s`.
        """

    def expect_shares(self, others: "Future[list[Any]]") -> None:  # noqa: B027  # ipc's
        """With `ipc`: what each other rank shares on its GPU of the next version (`RankShare`)."""

    async def stage(self, peers: Sequence[Peer], checked: CheckedManifest) -> list[Peer]:
        """Have servers stage the version, all at once; returns those that did."""
        request, size = checked.stage(self.name), checked.num_bytes
        return await select(peers, lambda p: p.tell(lambda c: c.stage(request), num_bytes=size))

    async def commit(self, peers: Sequence[Peer], checked: CheckedManifest) -> list[Peer]:
        """Have servers serve the staged version, all at once; returns those that do."""
        request, size = checked.commit(), checked.num_bytes
        return await select(peers, lambda p: p.tell(lambda c: c.commit(request), num_bytes=size))

    async def seed(self, peer: Peer, checked: CheckedManifest) -> bool:
        """Give the prepared version to a server that missed it; returns whether it serves it."""
        staged = await self.stage([peer], checked)
        return bool(await self.commit(staged, checked))

    def settle(self) -> None:  # noqa: B027  # most have nothing to give back
        """Give back what only `commit` needed. May take a while; `seed` comes after it."""

    def close(self) -> None:  # noqa: B027  # most have nothing to give back
        """Give back what `prepare` took. Servers keep what they have loaded."""


async def select(peers: Sequence[Peer], works: Callable[[Peer], Awaitable[bool]]) -> list[Peer]:
    """Those for which it works; all are tried at the same time."""
    worked = await asyncio.gather(*map(works, peers))
    return [peer for peer, did in zip(peers, worked, strict=True) if did]


def make_sender(settings: Settings) -> Sender:
    """The sending end of `weights.transport`.

    Raises:
        SettingsError: This process cannot send by it.
    """
    name = settings.weights.transport
    if not settings.weights.traits.through_file:
        _refuse_without_gpu(name)
    made: Sender = getattr(
        import_module(f"weight_sync.transports.{name}"), f"{name.title()}Sender"
    )(settings)
    return made


def _refuse_without_gpu(transport: Transport) -> None:
    import torch

    if not torch.cuda.is_available():
        raise SettingsError(
            f"weights.transport = {transport!r} sends from the trainer's GPU, and there is none: "
            "use shm on one host, disk on a shared file system, or http"
        )
