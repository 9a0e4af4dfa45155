"""Peak memory of one attention layer over a group: by completion against a mask of the sequence.

python benchmarks/attention_memory.py [--completions 64 128 256 512] [--device cuda]

A group has 8 completions behind a prompt of 512 tokens; heads are those of Qwen2-VL-2B. Each
measurement is forward and backward in a process of its own. On the CPU the figure is the highest
resident size (VmHWM) over what the process had before; on CUDA `max_memory_allocated` likewise.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PROMPT, GROUP, HEADS, KEY_HEADS, SIZE = 512, 8, 12, 2, 128
WAYS = ("grouped", "mask")


def main() -> None:
    """Measure both ways at each length and print a table."""
    arguments = _arguments()
    if arguments.way:
        _measure(arguments.way, arguments.completions[0], arguments.device)
        return
    print("| tokens | grouped, MiB | with a mask, MiB | grouped, s | with a mask, s |")
    print("|---|---|---|---|---|")
    for length in arguments.completions:
        found = [_child(way, length, arguments.device) for way in WAYS]
        columns = [PROMPT + GROUP * length, *(f[0] for f in found), *(f[1] for f in found)]
        print(f"| {' | '.join(map(str, columns))} |")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--completions", type=int, nargs="+", default=[64, 128, 256, 512])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--way", choices=WAYS, help="of a child process")
    return parser.parse_args()


def _child(way: str, length: int, device: str) -> list[str]:
    command = [sys.executable, __file__, "--way", way, "--completions", str(length)]
    command += ["--device", device]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()


def _measure(way: str, length: int, device_name: str) -> None:
    import torch

    from benchmarks.memory import PeakMemory
    from trainer.batches.batch import RowLayout
    from trainer.policy.grouped.attention import grouped_attention

    torch.manual_seed(0)
    device, layout = torch.device(device_name), RowLayout(PROMPT, (length,) * GROUP)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    tokens = PROMPT + GROUP * length
    query, key, value = (
        torch.randn(1, heads, tokens, SIZE, device=device, dtype=dtype).requires_grad_()
        for heads in (HEADS, KEY_HEADS, KEY_HEADS)
    )
    memory, start = PeakMemory(device), time.perf_counter()
    if way == "grouped":
        out = grouped_attention(None, query, key, value, None, layout=(layout,))[0]
    else:
        out = _masked(query, key, value, layout)
    out.sum().backward()
    peak = memory.mib()
    print(f"{peak:.0f} {time.perf_counter() - start:.2f}")


def _masked(query: Any, key: Any, value: Any, layout: Any) -> Any:
    """One `sdpa` with a mask to add of all tokens against all, keys repeated for each head."""
    import torch

    lengths = torch.tensor([layout.prompt, *layout.completions], device=query.device)
    segments = torch.arange(len(lengths), device=query.device).repeat_interleave(lengths)
    mine = (segments[:, None] == segments) | (segments == 0)
    mask = torch.zeros(mine.shape, dtype=query.dtype, device=query.device)
    mask.masked_fill_(~mine.tril(), -torch.inf)
    key, value = (t.repeat_interleave(HEADS // KEY_HEADS, dim=1) for t in (key, value))
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, mask)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main()
