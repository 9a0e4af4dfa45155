"""Gives every rollout server a new policy: stage all, write it down once, commit all."""

import asyncio
import hashlib
import logging
import shutil
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from services.clients.rollout import RolloutClient
from services.errors import SggError
from services.keys import RunKeys
from services.redis_client import connect
from services.registry import Registry
from services.schemas.weights import (
    CommitRequest,
    PolicyInfo,
    PolicyRecord,
    ServerRecord,
    StageRequest,
    TensorEntry,
    WeightManifest,
)
from services.settings import Settings
from services.waiting import until_available
from services.weights import manifest_checksum, shm_file

logger = logging.getLogger(__name__)

SERVER_TIMEOUT_S = 60.0
"""A server silent for this long while it stages or commits is left behind."""
KEEP_VERSIONS = 2
"""Files kept in shared memory: the version that is served, and the one that replaces it."""


class WeightPublisher:
    """The `shm` transport's sending side, on rank 0.

    A server that fails to take a version is left behind, not waited for: it is not given work that
    asks for the new version, and it catches up from the policy record by itself.

    Args:
        settings: Of the run.
        keys: Of the run.
        incarnation: Of this start of the trainer; older ones are refused by the servers.
    """

    def __init__(self, settings: Settings, keys: RunKeys, incarnation: int) -> None:
        self._settings = settings
        self._keys = keys
        self._incarnation = incarnation
        self._files: list[Path] = []

    def publish(self, weights: Iterable[tuple[str, Tensor]], policy_version: int) -> int:
        """Write a version to shared memory and have every live server serve it.

        Args:
            weights: Names and CPU tensors of the whole policy.
            policy_version: One more than the last.

        Returns:
            The number of servers that now serve it.
        """
        tensors = dict(weights)
        manifest = self._manifest(tensors, policy_version)
        self._write(tensors, policy_version)
        return asyncio.run(
            until_available(
                lambda: self._spread(manifest), timeout_s=self._settings.trainer.wait_timeout_s
            )
        )

    def close(self) -> None:
        """Remove the run's versions from shared memory. Servers keep what they have loaded."""
        shutil.rmtree(shm_file(self._settings.run.name, 0, 0).parent, ignore_errors=True)

    def _manifest(self, tensors: dict[str, Tensor], policy_version: int) -> WeightManifest:
        return WeightManifest(
            policy_version=policy_version,
            incarnation=self._incarnation,
            step=policy_version,
            vision_trained=not self._settings.trainer.freeze_vision,
            tensors={name: _entry(tensor) for name, tensor in tensors.items()},
        )

    def _write(self, tensors: dict[str, Tensor], policy_version: int) -> None:
        file = shm_file(self._settings.run.name, self._incarnation, policy_version)
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = file.with_suffix(".draft")
        save_file(tensors, draft)
        draft.rename(file)
        self._files.append(file)
        while len(self._files) > KEEP_VERSIONS:
            self._files.pop(0).unlink(missing_ok=True)

    async def _spread(self, manifest: WeightManifest) -> int:
        redis = connect(self._settings.redis.url)
        registry = Registry(redis, self._keys)
        try:
            servers = await registry.servers()
            checksum = manifest_checksum(manifest)
            request = StageRequest(manifest=manifest, checksum=checksum)
            staged = await asyncio.gather(
                *(self._tell(s, lambda c: c.stage(request)) for s in servers)
            )
            record = PolicyRecord(
                policy_version=manifest.policy_version,
                incarnation=manifest.incarnation,
                checksum=checksum,
                transport="shm",
            )
            await registry.publish_policy(record, manifest)
            commit = CommitRequest(policy_version=manifest.policy_version, checksum=checksum)
            ready = [s for s, ok in zip(servers, staged, strict=True) if ok]
            return sum(
                await asyncio.gather(*(self._tell(s, lambda c: c.commit(commit)) for s in ready))
            )
        finally:
            await redis.aclose()

    async def _tell(
        self, server: ServerRecord, call: Callable[[RolloutClient], Awaitable[PolicyInfo]]
    ) -> bool:
        """Whether a server did what it was asked."""
        async with self._client(server) as client:
            try:
                await call(client)
            except SggError as error:
                logger.warning("%s is left behind: %s", server.url, error)
                return False
            return True

    def _client(self, server: ServerRecord) -> RolloutClient:
        return RolloutClient(
            server.url,
            token=self._settings.data_token,
            admin_token=self._settings.admin_token,
            timeout_s=SERVER_TIMEOUT_S,
        )


def _entry(tensor: Tensor) -> TensorEntry:
    raw = tensor.reshape(-1).view(torch.uint8).numpy()
    return TensorEntry.model_validate(
        {
            "shape": list(tensor.shape),
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "sha256": hashlib.sha256(raw).hexdigest(),
        }
    )
