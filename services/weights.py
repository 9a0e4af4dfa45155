"""Digests of weight manifests: trainer and servers compute the same."""

import hashlib
import json
from pathlib import Path

from services.schemas.weights import WeightManifest


def manifest_checksum(manifest: WeightManifest) -> str:
    """sha256 of the manifest as canonical JSON."""
    text = json.dumps(manifest.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def shm_file(run: str, incarnation: int, policy_version: int) -> Path:
    """Where the `shm` transport keeps a version; never a path from a request."""
    return Path("/dev/shm") / f"sgg-{run}" / f"{incarnation}-{policy_version}.safetensors"
