"""What a version takes as a delta from the one before, in bytes and in seconds.

    python -m benchmarks.delta [--steps 20] [--rates 6e-7 1e-6 5e-6]

torch's own AdamW trains float32 masters of one layer of Qwen2-VL-2B (47 million elements, normal,
of spread 0.02) by gradients of noise with a small mean that stays. After `steps` of them, when its
moments are full, one more step is taken: what that changes in bfloat16 is the delta. Seconds are
those of one thread, beside the same version written whole and digested, as over `shm`.
"""

import argparse
import tempfile
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from services.waiting import RoomWait
from weight_sync.delta import Bits, TensorDelta, apply, encode
from weight_sync.file_format import write_weights

T = TypeVar("T")

HIDDEN, MLP, KEYS = 1536, 8960, 256
SHAPES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (KEYS, HIDDEN),
    "self_attn.v_proj": (KEYS, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (MLP, HIDDEN),
    "mlp.up_proj": (MLP, HIDDEN),
    "mlp.down_proj": (HIDDEN, MLP),
    "input_layernorm": (HIDDEN,),
}
SPREAD = 0.02
MEAN = 0.1
"""Mean of a gradient, in its noise's spread."""


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rates", type=float, nargs="+", default=[6e-7, 1e-6, 5e-6])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| rate | elements changed | bytes | encode s | apply s | whole written s |")
    print("|---|---|---|---|---|---|")
    for rate in arguments.rates:
        print(row(rate, *two_versions(rate, arguments.steps)))


def two_versions(rate: float, steps: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What is sampled with before and after one step, in bfloat16."""
    noise = torch.Generator().manual_seed(0)
    masters = {
        name: torch.randn(shape, generator=noise).mul_(SPREAD) for name, shape in SHAPES.items()
    }
    means = {name: torch.randn(m.shape, generator=noise).mul_(MEAN) for name, m in masters.items()}
    optimizer = torch.optim.AdamW(masters.values(), lr=rate, betas=(0.9, 0.95), weight_decay=0.0)
    before: dict[str, Tensor] = {}
    for _ in range(steps + 1):
        before = sampled(masters)
        for name, master in masters.items():
            master.grad = torch.randn(master.shape, generator=noise).add_(means[name])
        optimizer.step()
    return before, sampled(masters)


def sampled(masters: dict[str, Tensor]) -> dict[str, Tensor]:
    """As servers have it."""
    return {name: master.to(torch.bfloat16) for name, master in masters.items()}


def row(rate: float, before: dict[str, Tensor], after: dict[str, Tensor]) -> str:
    """One line of the table; what was applied is compared."""
    bases, news = ([bits(t) for t in tensors.values()] for tensors in (before, after))
    encode_s, deltas = timed(lambda: [encode(b, n) for b, n in zip(bases, news, strict=True)])
    copies = [base.copy() for base in bases]
    apply_s, _ = timed(lambda: deque(map(apply, copies, deltas), maxlen=0))
    for copy, new in zip(copies, news, strict=True):
        np.testing.assert_array_equal(copy, new)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        room = RoomWait(Path(folder), timeout_s=0.0)
        whole_s, _ = timed(lambda: write_weights(Path(folder) / "1-1", after.items(), room))
    counts = " | ".join(f"{share:.2%}" for share in shares(deltas, news))
    return f"| {rate:g} | {counts} | {encode_s:.2f} | {apply_s:.2f} | {whole_s:.2f} |"


def shares(deltas: list[TensorDelta], news: list[Bits]) -> tuple[float, float]:
    """The share of elements that changed, and of bytes that are sent."""
    num_elements, num_bytes = sum(n.size for n in news), sum(n.nbytes for n in news)
    changed, sent = sum(d.num_changed for d in deltas), sum(d.num_bytes for d in deltas)
    return changed / num_elements, sent / num_bytes


def bits(tensor: Tensor) -> Bits:
    """A bfloat16 tensor's elements as `weight_sync.delta` takes them."""
    flat: Bits = tensor.reshape(-1).view(torch.uint16).numpy()
    return flat


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """Core seconds of all threads, and the result: others' work hardly changes them."""
    started_at = time.process_time()
    result = work()
    return time.process_time() - started_at, result


if __name__ == "__main__":
    main()
