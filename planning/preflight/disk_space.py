"""Whether a run's folders lie where others see them, and have room."""

import shutil
import tempfile
from functools import partial
from pathlib import Path

from planning.estimate import num_trainable, weight_bytes
from planning.preflight.bare import nearest
from planning.preflight.check import CheckResult, check
from planning.preflight.folders import check_run_folder, file_system
from planning.shapes import ModelShape
from services.schemas.weights import Version
from services.settings import Settings
from weight_sync.delta import LARGEST_SHARE
from weight_sync.file_format import HEADER_BYTES
from weight_sync.transports.shm import shm_file

_GIB = 2**30
_SHARED = {"nfs", "nfs4", "lustre", "gpfs", "beegfs", "ceph", "fuse.ceph", "fuse.beegfs", "wekafs"}
"""Kinds of file systems that several hosts see."""
_OPTIMIZER_BYTES = 12
"""Bytes of a parameter: float32 weights and Adam's two moments."""


def folder_checks(settings: Settings, shape: ModelShape | None, *, hosts: int) -> list[CheckResult]:
    """Check a run's folder and `/dev/shm`.

    Args:
        settings: The run's settings.
        shape: Its model's shape; None where nothing is known of it.
        hosts: Hosts that the run's parts are on, this one counted.
    """
    found = check(
        "runs folder", partial(check_run_folder, settings.run.folder), ok=str(settings.run.folder)
    )
    if found.state != "ok":
        return [found]
    space = [] if shape is None else _disk_space(settings, shape, hosts)
    return [found, _file_system(settings.run.folder, hosts), *space]


def _file_system(folder: Path, hosts: int) -> CheckResult:
    kind = file_system(folder)
    if hosts == 1 or kind in _SHARED:
        return CheckResult("file system", "ok", f"{folder} is on {kind}")
    detail = (
        f"{folder} is on {kind}, and the run's parts are on {hosts} hosts: set run.root to a "
        "folder that all of them see, or make sure that this one is"
    )
    return CheckResult("file system", "warning", detail)


def _disk_space(settings: Settings, shape: ModelShape, hosts: int) -> list[CheckResult]:
    """As `weight_sync.transports.files` and `trainer.checkpoints` keep versions and checkpoints."""
    version = shape.num_parameters * weight_bytes(settings) + HEADER_BYTES
    state = version + num_trainable(settings, shape) * _OPTIMIZER_BYTES
    folder, traits = settings.run.folder, settings.weights.traits
    checkpoints: float = state * (settings.trainer.keep_checkpoints + 1)
    deltas = settings.weights.encoding == "delta"
    in_folder = 2 + deltas * LARGEST_SHARE  # with the deltas of the whole version before
    if traits.in_run_folder:
        checkpoints += in_folder * version
    remedy = "set run.root to a larger file system, or trainer.keep_checkpoints lower"
    found = [_free("room for checkpoints", folder, checkpoints, remedy)]
    if traits.same_host:
        remedy = (
            "make it larger (docker: shm_size; compose: WEIGHTS_MEMORY), or set "
            "weights.transport = 'disk'"
        )
        shared = shm_file(settings.run.name, Version()).parent
        found.append(_free("room for weights", shared, in_folder * version, remedy))
    servers = settings.cluster.num_rollout_servers if hosts == 1 else 0
    sent = traits.takes_deltas and not traits.servers_fetch
    in_temporary = 1 + 2 * servers if sent else servers * deltas
    if in_temporary:
        remedy = "set TMPDIR to a larger file system"
        needed = in_temporary * version
        name = "room for weights" if sent else "room for copies of weights"
        found.append(_free(name, Path(tempfile.gettempdir()), needed, remedy))
    return found


def _free(name: str, folder: Path, needed: float, remedy: str) -> CheckResult:
    free = shutil.disk_usage(nearest(folder)).free
    sizes = f"{needed / _GIB:.1f} GiB wanted, {free / _GIB:.1f} GiB free in {folder}"
    if free < needed:
        return CheckResult(name, "missing", f"{sizes}: {remedy}")
    return CheckResult(name, "ok", sizes)
