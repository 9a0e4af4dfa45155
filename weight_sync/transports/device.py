"""What the transports from GPU to GPU have in common: bytes move while servers commit."""

import asyncio
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from services.errors import EngineError, WaitTimeoutError
from services.schemas.weights import DeltaBase, Version
from services.settings import Settings
from weight_sync.file_format import describe
from weight_sync.transports.host import has_room, kept_on_host
from weight_sync.transports.http import HttpSender
from weight_sync.transports.sender import (
    SERVER_TIMEOUT_S,
    CheckedManifest,
    NamedTensors,
    Peer,
    Prepared,
    Sender,
    moving_s,
    whole,
)

T = TypeVar("T")

TRANSFER_TIMEOUT_S = SERVER_TIMEOUT_S + 5
"""The servers' own timeouts come first, for they say which server it was."""


class DeviceSender(Sender):
    """Sends tensors from the GPU where they are, and keeps them on the host once they are served.

    From there a server that comes late is sent the bytes by HTTP. They get digests then, which a
    transfer between GPUs does without: so for that server the same version has another checksum.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._device = own_device()
        self._tensors: dict[str, Tensor] = {}
        self._http = HttpSender(settings)
        self._writing = asyncio.Lock()
        self._by_http: CheckedManifest | None = None

    def prepare(
        self, weights: NamedTensors, version: Version, base: DeltaBase | None = None
    ) -> Prepared:
        """See `Sender.prepare`. What the GPU has no room for waits on the host."""
        self._by_http = None
        self._http.close()
        self._tensors = {}  # first: there is memory for one version
        self._tensors = {
            name: tensor if has_room(self._device) else kept_on_host(tensor)
            for name, tensor in weights
        }
        if self._device.type == "cuda":
            # They are made there, and vLLM reads them on streams of its own.
            torch.cuda.default_stream(self._device).synchronize()
        return whole({name: describe(tensor) for name, tensor in self._tensors.items()})

    def settle(self) -> None:
        """See `Sender.settle`: from here on the GPU's memory is training's."""
        for name, tensor in self._tensors.items():
            self._tensors[name] = kept_on_host(tensor)

    async def seed(self, peer: Peer, checked: CheckedManifest) -> bool:
        """See `Sender.seed`."""
        return await self._http.seed(peer, await self._checked_for_http(checked))

    def close(self) -> None:
        """See `Sender.close`."""
        self._http.close()
        self._tensors = {}

    async def _checked_for_http(self, checked: CheckedManifest) -> CheckedManifest:
        """Write the file that HTTP sends, once for all servers."""
        async with self._writing:
            if self._by_http is None:
                manifest = checked.manifest
                tensors = self._tensors.items()
                ready = await asyncio.to_thread(self._http.prepare, tensors, manifest.version)
                changes = {"tensors": ready.tensors}
                self._by_http = CheckedManifest.of(manifest.model_copy(update=changes))
            return self._by_http


class TensorMeta(NamedTuple):
    """What vLLM asks about a tensor before it comes."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


class TensorSource:
    """Tensors on their way to the GPU, one at a time.

    vLLM's `WeightSource` (vllm/distributed/weight_transfer/base.py).
    """

    def __init__(self, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        self._tensors = tensors
        self._device = device

    def metadata(self) -> list[TensorMeta]:
        """In the order of iteration."""
        return [TensorMeta(n, t.dtype, tuple(t.shape)) for n, t in self._tensors.items()]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Each tensor on the device."""
        for name, tensor in self._tensors.items():
            yield name, tensor.to(self._device)


class CommitClient:
    """vLLM's `VLLMWeightSyncClient`: its trainer side speaks through this to our servers.

    A server's commit is start, update and finish in one, so one of its four calls does all.
    """

    def __init__(self, commit: Callable[[dict[str, Any]], Any]) -> None:
        """Args: commit: Coroutine function, of vLLM's update info; runs on the present loop."""
        self._loop = asyncio.get_running_loop()
        self._commit = commit

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Servers have been told what there is to agree on when they staged."""

    def start_weight_update(self) -> None:
        """Part of the commit."""

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Commit, and wait for the servers; called on a thread beside the sending one."""
        asyncio.run_coroutine_threadsafe(self._commit(update_info), self._loop).result()

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Part of the commit."""


def on_daemon(work: Callable[[], T], device: torch.device, what: str) -> "Future[T]":
    """Begin work on a thread of its own, which does not keep the process from ending.

    Args:
        work: It may block for ever.
        device: What the thread computes on.
        what: The thread's name.
    """
    done: Future[T] = Future()
    done.set_running_or_notify_cancel()

    def run() -> None:
        try:
            if device.type == "cuda":
                torch.cuda.set_device(device)  # each thread has a current device of its own
            done.set_result(work())
        except Exception as error:  # noqa: BLE001  # NCCL's, CUDA's or vLLM's: the waiter's business
            done.set_exception(error)

    threading.Thread(target=run, name=what, daemon=True).start()
    return done


async def on_thread(
    work: Callable[[], T], device: torch.device, what: str, *, num_bytes: int = 0
) -> T:
    """Run work that may block for ever, and give it up; its thread stays behind then.

    Args:
        work: It has `TRANSFER_TIMEOUT_S`, and longer for what it moves.
        device: What it computes on.
        what: What is waited for.
        num_bytes: That it moves.

    Raises:
        WaitTimeoutError: It did not end; says what was waited for.
        EngineError: It failed.
    """
    timeout_s = TRANSFER_TIMEOUT_S + moving_s(num_bytes)
    try:
        async with asyncio.timeout(timeout_s) as limit:
            return await asyncio.wrap_future(on_daemon(work, device, what))
    except Exception as error:
        if limit.expired():
            raise WaitTimeoutError(f"waited {timeout_s:.3g} s for {what}") from error
        raise EngineError(f"{what} failed: {str(error) or type(error).__name__}") from error


def own_device() -> torch.device:
    """The GPU that the calling thread computes on; the CPU where there is none."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
