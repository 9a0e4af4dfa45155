"""All that a run needs here, by its settings."""

from planning.estimate import estimate_memory
from planning.placement import kinds, placed
from planning.preflight.check import CheckResult, check
from planning.preflight.disk_space import folder_checks
from planning.preflight.gpus import Gpu, check_gpus, has_cuda_build, visible_gpus
from planning.preflight.inputs import input_checks
from planning.preflight.services import num_hosts, secret_checks, service_checks
from planning.shapes import ModelShape, model_shape
from services.errors import SggError
from services.schemas.weights import ServerRecord
from services.settings import Settings


def run_checks(settings: Settings) -> list[CheckResult]:
    """Look at each thing that this run needs on this machine."""
    hosts = num_hosts(settings)
    shape = _shape(settings.model.path)
    services, servers = service_checks(settings)
    return [
        *input_checks(settings),
        *folder_checks(settings, shape, hosts=hosts),
        *secret_checks(settings),
        *services,
        *gpu_checks(settings, shape, visible_gpus(), servers, one_host=hosts == 1),
    ]


def gpu_checks(
    settings: Settings,
    shape: ModelShape | None,
    gpus: list[Gpu],
    servers: list[ServerRecord],
    *,
    one_host: bool,
) -> list[CheckResult]:
    """Check the GPUs that this machine has for a run.

    Args:
        settings: The run's settings.
        shape: Its model's shape; None where nothing is known of it.
        gpus: That can be seen here.
        servers: The run's living servers.
        one_host: Whether trainer and rollout servers are all here.
    """
    if not gpus:
        return [check("GPU", lambda: _no_gpu(settings))]
    found = [CheckResult("GPU", "ok", kinds(gpus))]
    old = next((gpu for gpu in gpus if not gpu.has_bfloat16), None)
    if old is not None and settings.model.dtype == "bfloat16":
        detail = (
            f"{old.name} (capability {old.capability}) cannot compute in it: set model.dtype "
            "= 'float32', or use GPUs from Ampere on"
        )
        found.append(CheckResult("bfloat16", "missing", detail))
    found += [*_number(settings, gpus, one_host=one_host), *_taken(gpus, servers)]
    if shape is not None and all(gpu.memory_gib for gpu in gpus):
        found.append(_memory(settings, shape, gpus))
    return found


def _no_gpu(settings: Settings) -> str:
    check_gpus(1, who="this run")
    wants = "though the packages are for GPUs" if has_cuda_build() else "the packages are for CPUs"
    return f"none, and {wants}"


def _number(settings: Settings, gpus: list[Gpu], *, one_host: bool) -> list[CheckResult]:
    if not one_host:
        return []
    found = check("GPUs", lambda: kinds(placed(settings, gpus).idle))
    return [found] if found.state == "missing" else []


def _taken(gpus: list[Gpu], servers: list[ServerRecord]) -> list[CheckResult]:
    holders = {gpu: server.server_id for server in servers for gpu in server.gpus}
    taken = [f"{gpu.index} by {holders[gpu.uuid]}" for gpu in gpus if gpu.uuid in holders]
    if not taken:
        return []
    detail = f"{', '.join(taken)}: give another server one of its own with CUDA_VISIBLE_DEVICES"
    return [CheckResult("GPUs taken", "warning" if len(taken) == len(gpus) else "info", detail)]


def _memory(settings: Settings, shape: ModelShape, gpus: list[Gpu]) -> CheckResult:
    needed = sum(estimate_memory(settings, shape).values())
    smallest = min(gpu.memory_gib for gpu in gpus)
    detail = f"a rank needs about {needed:.0f} GiB, and the smallest has {smallest:.0f} GiB"
    if needed <= smallest:
        return CheckResult("GPU memory", "ok", detail)
    remedy = "`sgg-rl train --dry-run` says what takes it; raise trainer.num_ranks with ZeRO-3"
    return CheckResult("GPU memory", "missing", f"{detail}: {remedy}")


def _shape(path: str) -> ModelShape | None:
    try:
        return model_shape(path)
    except SggError:  # said by the look at the model
        return None
