"""What `sgg-rl train --dry-run` says: the resolved settings, the steps, and the memory of a GPU.

It is one TOML document, with what was found as comments below the settings: it can be kept as the
file of the run.
"""

from collections.abc import Iterator
from pathlib import Path

from launcher.rubric_check import check_rubric
from rollout_service.gpu_share import server_memory
from scene_data.dataset import open_dataset
from scene_data.sources import is_hub_name
from services.errors import InvalidInputError, SettingsError
from services.settings import Settings, dump_settings
from trainer.sizing.checks import advice, check_grpo
from trainer.sizing.estimate import GIB, estimate_memory, weight_bytes
from trainer.sizing.shapes import model_shape


def dry_run(settings: Settings) -> str:
    """Check all that can be checked without a GPU and without the services.

    Raises:
        SettingsError: A setting is wrong, alone or beside another.
        InvalidInputError: The dataset cannot be used.
    """
    check_grpo(settings)
    check_rubric(settings)
    advised = (f"advice: {line}" for line in advice(settings))
    lines = [*_memory(settings), *_steps(settings), *advised]
    return "\n".join([dump_settings(settings), *(f"# {line}" for line in lines)])


def _steps(settings: Settings) -> Iterator[str]:
    trainer, name = settings.trainer, settings.data.train
    step = (
        f"{trainer.groups_per_step} images of {trainer.group_size} completions on "
        f"{trainer.num_ranks} trainer GPUs; {settings.cluster.num_rollout_servers} rollout servers"
    )
    try:
        rows = len(open_dataset(name, task=settings.data.task))
    except InvalidInputError as error:
        if not is_hub_name(name):
            raise SettingsError(f"data.train: {error.message}") from error
        steps = trainer.num_steps or f"{trainer.num_epochs:g} epochs"
        yield f"steps: {steps}; {name} is not checked: it was not reached"
    else:
        total = trainer.total_steps(rows)
        epochs = total * trainer.groups_per_step / rows
        yield f"steps: {total}, {epochs:.2f} epochs of {rows} images"
    yield f"a step: {step}"


def _memory(settings: Settings) -> Iterator[str]:
    path = settings.model.path
    if not Path(path).exists() and not is_hub_name(path):
        raise SettingsError(
            f"model.path: there is no {path}: if it is what SFT makes, run that first (sgg-rl sft)"
        )
    shape = model_shape(path)
    found = estimate_memory(settings, shape)
    yield f"model: {shape.num_parameters / 1e6:,.1f} million parameters"
    yield "memory of a trainer GPU, at most (GiB):"
    for name, gib in found.parts.items():
        yield f"  {name:<20}{gib:6.1f}"
    yield f"  {'together':<20}{found.total:6.1f}"
    memory = settings.cluster.gpu_memory_gib
    if memory is None:
        return
    if found.total > memory:
        raise SettingsError(
            f"a trainer GPU needs {found.total:.1f} GiB and cluster.gpu_memory_gib is {memory:g} "
            f"(most of it: {max(found.parts, key=lambda name: found.parts[name])}): raise "
            "deepspeed.zero_stage or trainer.num_ranks, lower trainer.tokens_per_micro_batch, or "
            "set deepspeed.offload_optimizer"
        )
    yield f"  {'of':<20}{memory:6.1f}"
    if settings.shares_gpus:
        weights = weight_bytes(settings) * shape.num_parameters
        cache = server_memory(settings, int(memory * GIB), weights)["kv_cache_memory_bytes"]
        yield f"KV cache of the rollout server on it (GiB): {cache / GIB:.1f}"
