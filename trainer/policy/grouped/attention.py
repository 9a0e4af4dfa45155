"""Attention over rows of a prompt and its completions, without a mask of the sequence.

A row `[prompt, c1, …, cG]` needs G + 1 ordinary causal attentions: the prompt over itself, and each
completion's queries over `[prompt, itself]` with the causal diagonal at the lower right. That is
what each completion would see behind a prompt of its own; its memory is linear in the row.

It comes to a model as an attention function of transformers, and the layout as a keyword that the
model's `forward` hands down to it.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from trainer.batches.batch import RowLayout

NAME = "grouped"
"""In transformers' registry of attention functions."""
_FLASH_CAPABILITY = (8, 0)
"""A GPU's, from Ampere on. torch's flash attention runs on no older one."""


def use_grouped_attention(model: Any) -> None:
    """Give a model's text layers this attention; its vision tower keeps its own."""
    AttentionInterface.register(NAME, grouped_attention)
    model.set_attn_implementation({"text_config": NAME})


def grouped_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    layout: Sequence[RowLayout] | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """An attention function of transformers; without a GPU for flash attention, `sdpa`.

    Args:
        module: The layer.
        query: [1, heads, S, D]
        key: [1, key heads, S, D], and so `value`; as many heads, or a part of them.
        value: See `key`.
        attention_mask: None: the layout says what may see what.
        scaling: Of the scores.
        dropout: Of the attention's weights.
        layout: The rows; they fill S.

    Returns:
        [1, S, heads, D], and no weights.

    Raises:
        ValueError: The layout is missing, or is not that of the sequence.
    """
    if layout is None or attention_mask is not None:
        raise ValueError(f"attention {NAME!r} takes the rows' `layout` and no mask: {type(module)}")
    if query.shape[0] != 1 or query.shape[2] != sum(_lengths(layout)):
        raise ValueError(f"{tuple(query.shape)} queries, of which layout lists {_lengths(layout)}")
    if dropout == 0 and _has_flash(query):
        return _flash(query, key, value, tuple(layout), scaling), None
    return _sdpa(query, key, value, layout, scaling, dropout), None


class _Part(NamedTuple):
    """Queries, and the keys and values that they see, causal at the lower right."""

    query: Tensor
    keys: list[Tensor]
    values: list[Tensor]


def _parts(
    query: Tensor, key: Tensor, value: Tensor, layout: Sequence[RowLayout]
) -> Iterator[_Part]:
    """Each prompt, and each completion with its prompt; tokens are dimension 2."""
    split = (tensor.split(_lengths(layout), dim=2) for tensor in (query, key, value))
    tokens = zip(*split, strict=True)
    for row in layout:
        q, prompt_k, prompt_v = next(tokens)
        yield _Part(q, [prompt_k], [prompt_v])
        for _ in row.completions:
            q, k, v = next(tokens)
            yield _Part(q, [prompt_k, k], [prompt_v, v])


def _lengths(layout: Sequence[RowLayout]) -> list[int]:
    return [length for row in layout for length in (row.prompt, *row.completions)]


def _sdpa(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Sequence[RowLayout],
    scaling: float | None,
    dropout: float,
) -> Tensor:
    """[1, S, heads, D]; one call for each part."""
    prompt = max(row.prompt for row in layout)
    completion = max(length for row in layout for length in row.completions)
    mask = _lower_right(completion, prompt, query.dtype, query.device)
    out = []
    for part in _parts(query, key, value, layout):
        length, before = part.query.shape[2], sum(k.shape[2] for k in part.keys[:-1])
        seen = mask[:length, prompt - before : prompt + length] if before else None
        out.append(
            scaled_dot_product_attention(
                part.query,
                torch.cat(part.keys, dim=2),
                torch.cat(part.values, dim=2),
                attn_mask=seen,
                dropout_p=dropout,
                is_causal=seen is None,
                scale=scaling,
                enable_gqa=query.shape[1] != key.shape[1],
            )
        )
    return torch.cat(out, dim=2).transpose(1, 2)


@lru_cache(maxsize=1)
def _lower_right(completion: int, prompt: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[completion, prompt + completion] to add to scores; every part's is a corner of it.

    The same for all layers of a pass.
    """
    seen = torch.ones(completion, prompt + completion, dtype=torch.bool, device=device)
    hidden = ~seen.tril(prompt)
    return torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill_(hidden, -torch.inf)


def _has_flash(query: Tensor) -> bool:
    return (
        query.is_cuda
        and query.dtype in (torch.bfloat16, torch.float16)
        and torch.cuda.get_device_capability(query.device) >= _FLASH_CAPABILITY
    )


def _flash(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: tuple[RowLayout, ...],
    scaling: float | None,
) -> Tensor:
    """[1, S, heads, D]; one call for all parts, each with its prompt's keys before its own."""
    parts = list(_parts(query, key, value, layout))
    ends_q, ends_k, longest_q, longest_k = _flash_lengths(layout, query.device)
    out = varlen_attn(
        query[0].transpose(0, 1),
        torch.cat([k for part in parts for k in part.keys], dim=2)[0].transpose(0, 1),
        torch.cat([v for part in parts for v in part.values], dim=2)[0].transpose(0, 1),
        ends_q,
        ends_k,
        longest_q,
        longest_k,
        scale=scaling,
        window_size=(-1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out.unsqueeze(0)


@lru_cache(maxsize=1)
def _flash_lengths(
    layout: tuple[RowLayout, ...], device: torch.device
) -> tuple[Tensor, Tensor, int, int]:
    """Where each part's queries and keys end, [parts + 1], and the longest; for all layers."""
    queries = _lengths(layout)
    keys = [
        seen for row in layout for seen in (row.prompt, *(row.prompt + c for c in row.completions))
    ]

    def ends(lengths: list[int]) -> Tensor:
        return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)

    return ends(queries), ends(keys), max(queries), max(keys)
