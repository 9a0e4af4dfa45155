"""What trainer and servers must agree on: digests, places of files, handles of GPU memory."""

import base64
import hashlib
import json
import os
import socket
import stat
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from services.errors import SettingsError
from services.schemas.weights import IpcHandle, WeightManifest

NCCL_BUCKET_BYTES = 256 * 1024 * 1024
"""Tensors are broadcast in buckets of this size; each side holds two of them on the GPU."""


def manifest_checksum(manifest: WeightManifest) -> str:
    """sha256 of the manifest as canonical JSON."""
    text = json.dumps(manifest.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def shm_file(run: str, incarnation: int, policy_version: int) -> Path:
    """Where the `shm` transport keeps a version; never a path from a request.

    The runs of one user have one folder, so that a container can mount it whatever its run is.
    """
    file = f"{incarnation}-{policy_version}.safetensors"
    return Path("/dev/shm") / f"sgg-{os.geteuid()}" / run / file


def disk_file(root: Path, incarnation: int, policy_version: int) -> Path:
    """Where the `disk` transport keeps a version; `root` is the run's folder."""
    return root / "weights" / f"{incarnation}-{policy_version}.safetensors"


def temporary_folder(run: str, part: str) -> Path:
    """A folder of this part of a run, this host and this user in `TMPDIR`, which hosts may share.

    Containers have host names of their own, and hosts that were given one name have kernels of
    their own.
    """
    kernel = Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
    name = f"sgg-{run}-{part}-{socket.gethostname()}-{kernel}-{os.geteuid()}"
    return Path(tempfile.gettempdir()) / name


def private_folder(path: Path) -> Path:
    """Make a folder that no other user of this host can write to, or check that it is one.

    Raises:
        SettingsError: Somebody else made it, or opened it for others.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = path.lstat()
    mine = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()
    if not mine or status.st_mode & 0o022:
        raise SettingsError(
            f"{path} is not a folder that you alone can write to: remove it, or name the run anew"
        )
    return path


def encode_ipc(gpu: str, args: Sequence[Any]) -> IpcHandle:
    """A tensor's place in GPU memory, as a message.

    Args:
        gpu: UUID of the GPU.
        args: Of `rebuild_cuda_tensor`, as torch's `reduce_tensor` gives them for a CUDA tensor
            (torch/multiprocessing/reductions.py). Shape and dtype are the manifest's business.
    """
    _, _, stride, offset, _, _, _, memory, size, start, _, counter, counter_at, event, sync = args
    return IpcHandle(
        gpu=gpu,
        stride=list(stride),
        offset=offset,
        memory=base64.b64encode(memory).decode(),
        storage_bytes=size,
        storage_offset_bytes=start,
        ref_counter=base64.b64encode(counter).decode(),
        ref_counter_offset=counter_at,
        event=base64.b64encode(event).decode(),
        event_sync_required=sync,
    )
