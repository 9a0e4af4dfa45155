"""Rows through a GPU's flash attention, against `sdpa` in float32.

Run it with `pytest tests/gpu`; one GPU is enough.
"""

import pytest
import torch
from torch import Tensor

from trainer.batches.batch import RowLayout
from trainer.policy.grouped import attention as grouped

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
LAYOUT = (RowLayout(517, (300, 1, 64, 255)), RowLayout(40, (90,)))


@pytest.mark.parametrize("size", [128, 256])
def test_flash_attention_is_that_of_sdpa(size: int) -> None:
    torch.manual_seed(0)
    length = sum(row.prompt + sum(row.completions) for row in LAYOUT)
    shapes = [(1, heads, length, size) for heads in (12, 2, 2)]
    start = [torch.randn(shape, device="cuda", dtype=torch.bfloat16) for shape in shapes]

    def run(dtype: torch.dtype) -> list[Tensor]:
        query, key, value = inputs = [t.to(dtype, copy=True).requires_grad_() for t in start]
        assert grouped._has_flash(query) == (dtype == torch.bfloat16)
        out, _ = grouped.grouped_attention(None, query, key, value, None, layout=LAYOUT)
        (out * torch.linspace(-1, 1, out.numel(), device="cuda").view_as(out)).sum().backward()
        return [out, *(tensor.grad for tensor in inputs)]

    for got, want in zip(run(torch.bfloat16), run(torch.float32), strict=True):
        assert torch.norm(got.float() - want) < 0.02 * torch.norm(want)
