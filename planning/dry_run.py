"""What `sgg-rl train --dry-run` says: the resolved settings, the steps, and the memory of a GPU.

It is one TOML document, with what was found as comments below the settings: it can be kept as the
file of the run.
"""

from collections.abc import Iterator

from planning.estimate import estimate_memory, weight_bytes
from planning.preflight.check import check
from planning.preflight.inputs import input_checks, refuse
from planning.preflight.rows import opened
from planning.shapes import model_shape
from rollout_service.vllm.gpu_memory import server_memory
from services.errors import InvalidInputError, SettingsError
from services.host.gpu import GIB
from services.printable import counted, printable
from services.settings import Settings, dump_settings
from services.settings.checks import advice


def dry_run(settings: Settings) -> str:
    """Check all that can be checked without a GPU and without the services.

    Raises:
        SettingsError: With all that a start would refuse.
    """
    results = input_checks(settings)
    memory = check("memory", lambda: "\n".join(_memory(settings)))
    refuse([*results, memory])
    said = (f"{f.name}: {f.detail}" for f in results if f.state in ("info", "warning"))
    advised = (f"advice: {line}" for line in advice(settings))
    text = "\n".join([memory.detail, *_steps(settings), *said, *advised])
    comments = (f"# {printable(line)}" for line in text.splitlines())
    return "\n".join([dump_settings(settings), *comments])


def _steps(settings: Settings) -> Iterator[str]:
    trainer, name = settings.trainer, settings.data.train
    step = (
        f"{counted(trainer.groups_per_step, 'image')} of "
        f"{counted(trainer.group_size, 'completion')} on "
        f"{counted(trainer.num_ranks, 'trainer GPU')}; "
        f"{counted(settings.cluster.num_rollout_servers, 'rollout server')}"
    )
    try:
        rows = len(opened(name, settings.data.task))
    except InvalidInputError:
        yield f"steps: {trainer.num_steps or f'{trainer.num_epochs:g} epochs'}"
    else:
        total = trainer.total_steps(rows)
        epochs = total * trainer.groups_per_step / rows
        yield f"steps: {total}, {epochs:.2f} epochs of {counted(rows, 'image')}"
    yield f"a step: {step}"


def _memory(settings: Settings) -> Iterator[str]:
    try:
        shape = model_shape(settings.model.path)
    except SettingsError:  # refused with its reason, or not reached
        yield f"memory: nothing is known of {settings.model.path} here"
        return
    parts = estimate_memory(settings, shape)
    total = sum(parts.values())
    yield f"model: {shape.num_parameters / 1e6:,.1f} million parameters"
    yield "memory of a trainer GPU, at most (GiB):"
    for name, gib in parts.items():
        yield f"  {name:<20}{gib:6.1f}"
    yield f"  {'together':<20}{total:6.1f}"
    memory = settings.cluster.gpu_memory_gib
    if memory is None:
        return
    if total > memory:
        raise SettingsError(
            f"a trainer GPU needs {total:.1f} GiB and cluster.gpu_memory_gib is {memory:g} "
            f"(most of it: {max(parts, key=lambda name: parts[name])}): raise "
            "deepspeed.zero_stage or trainer.num_ranks, lower trainer.tokens_per_micro_batch, or "
            "set deepspeed.offload_optimizer"
        )
    yield f"  {'of':<20}{memory:6.1f}"
    if settings.shares_gpus:
        weights = weight_bytes(settings) * shape.num_parameters
        cache = server_memory(settings, int(memory * GIB), weights)["kv_cache_memory_bytes"]
        yield f"KV cache of the rollout server on it (GiB): {cache / GIB:.1f}"
