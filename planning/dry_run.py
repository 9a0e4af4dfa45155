"""What `train --dry-run` and `sft --dry-run` say: resolved settings, steps, memory of a GPU.

It is one TOML document, with what was found as comments below the settings: it can be kept as the
file of the run.
"""

import math
from collections.abc import Iterator

from planning.estimate import (
    estimate_memory,
    estimate_sft_memory,
    num_trainable,
    version_bytes,
    weight_bytes,
)
from planning.preflight.check import check
from planning.preflight.inputs import Job, input_checks, refuse
from planning.preflight.rows import opened
from planning.shapes import model_shape
from rollout_service.vllm.gpu_memory import server_memory
from services.errors import InvalidInputError, SettingsError
from services.host.gpu import GIB
from services.printable import counted, printable
from services.settings import Settings, dump_settings
from services.settings.checks import advice, num_micro_batches

_SIZE: dict[Job, str] = {
    "train": "trainer.tokens_per_micro_batch",
    "sft": "sft.micro_batch_size or rollout.max_model_len",
}
"""What the memory of a micro batch depends on."""


def dry_run(settings: Settings, job: Job = "train") -> str:
    """Check all that can be checked without a GPU and without the services.

    Raises:
        SettingsError: With all that a start would refuse.
    """
    results = input_checks(settings, job)
    refuse(results)
    memory = check("memory", lambda: "\n".join(_memory(settings, job)))
    refuse([memory])
    said = (f"{f.name}: {f.detail}" for f in results if f.state in ("info", "warning"))
    advised = (f"advice: {line}" for line in advice(settings)) if job == "train" else ()
    steps = _steps(settings) if job == "train" else _sft_steps(settings)
    text = "\n".join([memory.detail, *steps, *said, *advised])
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
    if (size := settings.rollout.tensor_parallel_size) > 1:
        step += f" of {size} GPUs"
    algorithm = settings.algorithm
    updates = algorithm.num_iterations * algorithm.num_mini_batches
    if updates > 1:
        size = trainer.groups_per_step // algorithm.num_mini_batches
        step += f"; {updates} updates of {counted(size, 'image')}"
    try:
        rows = len(opened(name, settings.data.task))
    except InvalidInputError:
        yield f"steps: {trainer.num_steps or f'{trainer.num_epochs:g} epochs'}"
    else:
        total = trainer.total_steps(rows)
        epochs = total * trainer.groups_per_step / rows
        yield f"steps: {total}, {epochs:.2f} epochs of {counted(rows, 'image')}"
    yield f"a step: {step}"


def _sft_steps(settings: Settings) -> Iterator[str]:
    sft, data, files = settings.sft, settings.data, settings.run.files
    try:
        column = sft.thinking_column if data.thinking else None
        rows = len(opened(data.train, data.task, column))
    except InvalidInputError:
        yield f"steps: {sft.num_steps or f'{sft.num_epochs:g} epochs'}"
    else:
        total, of_epoch = sft.total_steps(rows), math.ceil(rows / sft.batch_size)
        yield f"steps: {total}, {total / of_epoch:.2f} epochs of {rows} answers"
    yield (
        f"a step: {sft.batch_size} answers on {settings.trainer.num_ranks} trainer GPUs, in "
        f"{num_micro_batches(settings)} micro batches of {sft.micro_batch_size} on each"
    )
    yield f"SFT on the graphs of {data.train}, to be written to {files.model}"


def _memory(settings: Settings, job: Job) -> Iterator[str]:
    try:
        shape = model_shape(settings.model.path)
    except SettingsError:  # refused with its reason, or not reached
        yield f"memory: nothing is known of {settings.model.path} here"
        return
    parts = (estimate_memory if job == "train" else estimate_sft_memory)(settings, shape)
    total = sum(parts.values())
    of_all, trained = (n / 1e6 for n in (shape.num_parameters, num_trainable(settings, shape)))
    adapter = ", of an adapter" if settings.lora.rank else ""
    yield f"model: {of_all:,.1f} million parameters; {trained:,.1f} million are trained{adapter}"
    rows = "" if job == "train" else f", of rows of {settings.rollout.max_model_len} tokens"
    yield f"memory of a trainer GPU{rows}, at most (GiB):"
    for name, gib in parts.items():
        yield f"  {name:<20}{gib:6.1f}"
    yield f"  {'together':<20}{total:6.1f}"
    if job == "train" and settings.weights.encoding == "delta":
        kept = version_bytes(settings, shape) / GIB
        yield f"in the memory of rank 0's host (GiB): the version before {kept:.1f}"
    memory = settings.cluster.gpu_memory_gib
    if memory is None:
        return
    if total > memory:
        raise SettingsError(
            f"a trainer GPU needs {total:.1f} GiB and cluster.gpu_memory_gib is {memory:g} "
            f"(most of it: {max(parts, key=lambda name: parts[name])}): raise "
            f"deepspeed.zero_stage or trainer.num_ranks, lower {_SIZE[job]}, or set "
            "deepspeed.offload_optimizer"
        )
    yield f"  {'of':<20}{memory:6.1f}"
    if job == "train":
        weights = weight_bytes(settings) * shape.num_parameters
        cache = server_memory(settings, int(memory * GIB), weights)["kv_cache_memory_bytes"]
        part = weights / settings.rollout.tensor_parallel_size
        where = "it" if settings.shares_gpus else "each of its GPUs"
        yield (
            f"a rollout server on {where} (GiB): weights {part / GIB:.1f}, KV cache "
            f"{cache / GIB:.1f}"
        )
