"""Versions of a tiny policy in shared memory, as the trainer writes them."""

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3
from safetensors.numpy import save_file

from services.schemas.weights import (
    CommitRequest,
    DeltaBase,
    DigestAlgorithm,
    Encoding,
    PolicyRecord,
    StageRequest,
    TensorEntry,
    Version,
    WeightManifest,
    manifest_checksum,
)
from weight_sync.delta.encoding import advance
from weight_sync.transports.files import delta_file, private_folder
from weight_sync.transports.shm import shm_file

Arrays = dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]
TENSORS: dict[str, tuple[int, ...]] = {"embed.weight": (4, 3), "norm.weight": (3,)}
"""What the policy of these tests consists of."""
HASHES: dict[DigestAlgorithm, Callable[[bytes], Any]] = {
    "sha256": hashlib.sha256,
    "blake3": blake3,
}


@dataclass(frozen=True)
class ShmVersion:
    """A version whose file lies in shared memory."""

    manifest: WeightManifest
    file: Path

    @property
    def checksum(self) -> str:
        return manifest_checksum(self.manifest)

    @property
    def stage(self) -> StageRequest:
        return StageRequest(manifest=self.manifest, checksum=self.checksum)

    @property
    def commit(self) -> CommitRequest:
        return CommitRequest(policy_version=self.manifest.policy_version, checksum=self.checksum)

    @property
    def record(self) -> PolicyRecord:
        return PolicyRecord(
            policy_version=self.manifest.policy_version,
            incarnation=self.manifest.incarnation,
            checksum=self.checksum,
            transport="shm",
        )


@dataclass
class ShmRun:
    """Writes versions of one run; `clean` removes them all."""

    name: str
    encoding: Encoding = "whole"
    """With `delta` each is a delta of the whole version before it, which is written too."""
    checksums: dict[Version, str] = field(default_factory=dict)
    """Those that were written."""

    def write(
        self,
        policy_version: int,
        incarnation: int = 1,
        arrays: Arrays | None = None,
        *,
        vision_trained: bool = False,
        partial: bool = False,
        algorithm: DigestAlgorithm = "blake3",
    ) -> ShmVersion:
        """Write a version's file and describe it."""
        arrays = tensors_of(policy_version) if arrays is None else arrays
        version = Version(incarnation, policy_version)
        file, base = shm_file(self.name, version), None
        for folder in (file.parent.parent, file.parent):  # the user's, the run's
            private_folder(folder)
        if self.encoding == "delta" and policy_version > 0:
            base, file = self._write_delta(version, arrays), delta_file(file)
        else:
            save_file(arrays, file)
        manifest = WeightManifest(
            policy_version=policy_version,
            incarnation=incarnation,
            step=policy_version,
            vision_trained=vision_trained,
            partial=partial,
            algorithm=algorithm,
            tensors={
                name: TensorEntry(
                    shape=list(array.shape),
                    dtype="float32",
                    digest=HASHES[algorithm](array.tobytes()).hexdigest(),
                )
                for name, array in arrays.items()
            },
            delta=base,
        )
        self.checksums[version] = manifest_checksum(manifest)
        return ShmVersion(manifest, file)

    def _write_delta(self, version: Version, arrays: Arrays) -> DeltaBase:
        before = Version(version.incarnation, version.policy_version - 1)
        old = tensors_of(before.policy_version)
        old = {name: old[name].reshape(array.shape) for name, array in arrays.items()}
        save_file(old, shm_file(self.name, before))
        save_delta(delta_file(shm_file(self.name, version)), old, arrays)
        checksum = self.checksums.get(before, "0" * 64)
        return DeltaBase(checksum=checksum, chain=[before.policy_version])

    def clean(self) -> None:
        shutil.rmtree(shm_file(self.name, Version()).parent, ignore_errors=True)


def save_delta(file: Path, old: Arrays, new: Arrays) -> None:
    """What leads from one version to another."""
    parts: dict[str, Any] = {}
    for name, array in new.items():
        made = advance(*(each.reshape(-1).view(np.uint32) for each in (old[name].copy(), array)))
        parts |= {f"{name}:gaps": made.gaps, f"{name}:values": made.values.view(np.float32)}
    save_file(parts, file)


def tensors_of(seed: int) -> Arrays:
    """Other numbers for each version."""
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in TENSORS.items()}
