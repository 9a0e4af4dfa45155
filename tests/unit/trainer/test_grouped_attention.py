"""Rows' attention against one softmax under a mask of the whole sequence."""

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention

from trainer.batches.batch import RowLayout
from trainer.policy.grouped import attention as grouped

LAYOUT = (RowLayout(5, (3, 1, 4)), RowLayout(2, (6,)))
LENGTH, HEADS, KEY_HEADS, SIZE, SCALE = 21, 4, 2, 8, 0.3


def tensors() -> list[Tensor]:
    torch.manual_seed(0)
    shapes = [(1, heads, LENGTH, SIZE) for heads in (HEADS, KEY_HEADS, KEY_HEADS)]
    return [torch.randn(shape, dtype=torch.float64).requires_grad_() for shape in shapes]


def by_layout(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    out, _ = grouped.grouped_attention(None, query, key, value, None, scaling=SCALE, layout=LAYOUT)
    return out


def masked(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """[1, S, heads, D] by a mask of all tokens against all."""
    segments = [
        (r, s)
        for r, row in enumerate(LAYOUT)
        for s, n in enumerate((row.prompt, *row.completions))
        for _ in range(n)
    ]
    seen = [
        [r == q_r and s in (0, q_s) and k <= q for k, (r, s) in enumerate(segments)]
        for q, (q_r, q_s) in enumerate(segments)
    ]
    out = scaled_dot_product_attention(
        query, key, value, torch.tensor(seen), scale=SCALE, enable_gqa=True
    )
    return out.transpose(1, 2)


def flash(  # as torch documents it; it runs on GPUs alone
    query: Tensor,
    key: Tensor,
    value: Tensor,
    ends_q: Tensor,
    ends_k: Tensor,
    *longest: int,
    **more: Any,
) -> Tensor:
    """[T, heads, D] of each stretch over its own keys, causal at the lower right."""
    inspect.signature(varlen_attn).bind(query, key, value, ends_q, ends_k, *longest, **more)
    assert ends_q.dtype == ends_k.dtype == torch.int32
    assert more["window_size"] == (-1, 0)
    assert longest == (int(ends_q.diff().max()), int(ends_k.diff().max()))
    stretches = zip(
        query.split(ends_q.diff().tolist()),
        key.split(ends_k.diff().tolist()),
        value.split(ends_k.diff().tolist()),
        strict=True,
    )
    out = []
    for part in stretches:
        q, k, v = (tensor.transpose(0, 1) for tensor in part)
        seen = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool).tril(k.shape[1] - q.shape[1])
        attended = scaled_dot_product_attention(
            q, k, v, seen, scale=more["scale"], enable_gqa=more["enable_gqa"]
        )
        out.append(attended.transpose(0, 1))
    return torch.cat(out)


@pytest.mark.parametrize("has_flash", [False, True])
def test_attention_is_that_under_a_mask(has_flash: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grouped, "_has_flash", lambda _: has_flash)
    monkeypatch.setattr(grouped, "varlen_attn", flash)
    found = []
    for attend in (by_layout, masked):
        inputs = tensors()
        out = attend(*inputs)
        (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
        found.append([out, *(tensor.grad for tensor in inputs)])
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, atol=1e-12, rtol=0)


@pytest.mark.parametrize("layout", [None, (), LAYOUT[:1], (*LAYOUT, RowLayout(1, (1,)))])
def test_a_missing_or_another_layout_is_an_error(layout: Any) -> None:
    query, key, value = tensors()
    with pytest.raises(ValueError, match="layout"):
        grouped.grouped_attention(None, query, key, value, None, layout=layout)
