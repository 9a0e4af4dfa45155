"""The policy's tensors on their way out: gathered in buckets, cast, and copied where they are."""

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from trainer.policy.adapter import file_name

Gather = Callable[[Sequence[nn.Parameter]], AbstractContextManager[Any]]
"""Makes parameters whole on every rank as long as it is open; a collective where they are shards.
"""


def exported(
    parameters: Iterable[tuple[str, nn.Parameter]],
    *,
    gather: Gather,
    bucket_bytes: int,
    dtype: torch.dtype,
    wanted: bool,
    kept: Container[str] | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """Copies of parameters, on their device; a collective that every rank must exhaust.

    Beside the model, a bucket is on the device, and what the taker holds. A gathered parameter is
    gone when its bucket is done with, and the next step changes one that is not sharded.

    Args:
        parameters: With their names; the same on every rank.
        gather: Makes a bucket's parameters whole.
        bucket_bytes: Most that is gathered at a time; a larger parameter comes alone.
        dtype: The copies'.
        wanted: Whether this rank gets the tensors; to another nothing is given.
        kept: The names that it gets them of, all when None; of the others it gets shape and dtype,
            on torch's `meta` device.
    """
    for bucket in _buckets(parameters, bucket_bytes):
        with gather([parameter for _, parameter in bucket]):
            for name, parameter in bucket if wanted else ():
                if kept is None or name in kept:
                    yield name, parameter.detach().to(dtype, copy=True).contiguous()
                else:
                    yield name, torch.empty(parameter.shape, dtype=dtype, device="meta")


def exported_parameters(
    model: nn.Module, *, adapter_only: bool, trainable_only: bool
) -> list[tuple[str, nn.Parameter]]:
    """What a version consists of; tied parameters once, buffers never.

    Args:
        model: The policy; with an adapter in its layers where there is one.
        adapter_only: The adapter, by PEFT's file names.
        trainable_only: Without what is frozen.
    """
    named = model.named_parameters()  # skips what it has seen under another name
    if adapter_only:
        return [(file_name(name), p) for name, p in named if ".lora_" in name]
    return [(name, p) for name, p in named if p.requires_grad or not trainable_only]


def num_bytes(parameter: nn.Parameter, dtype: torch.dtype | None = None) -> int:
    """Bytes of the whole parameter, also where this rank has a shard of it.

    Args:
        parameter: A model's.
        dtype: What it is cast to; its own when None.
    """
    numel: int = getattr(parameter, "ds_numel", parameter.numel())
    size: int = (dtype or parameter.dtype).itemsize
    return numel * size


def _buckets(
    parameters: Iterable[tuple[str, nn.Parameter]], bucket_bytes: int
) -> Iterator[list[tuple[str, nn.Parameter]]]:
    bucket: list[tuple[str, nn.Parameter]] = []
    size = 0
    for name, parameter in parameters:
        if bucket and size + num_bytes(parameter) > bucket_bytes:
            yield bucket
            bucket, size = [], 0
        bucket.append((name, parameter))
        size += num_bytes(parameter)
    if bucket:
        yield bucket
