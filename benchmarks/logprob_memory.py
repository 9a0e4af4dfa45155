"""Peak memory of log-probabilities: the head in chunks against all logits at once.

python benchmarks/logprob_memory.py [--tokens 4096] [--vocabulary 32768] [--device cuda]

Each way runs in a process of its own, forward and backward. On the CPU the figure is the highest
resident size (VmHWM) over what the process had before; on CUDA `max_memory_allocated` likewise.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

HIDDEN = 512
CHUNKS = (256, 1024)


def main() -> None:
    """Measure every way and print a table."""
    arguments = _arguments()
    if arguments.way is not None:
        _measure(arguments)
        return
    size = arguments.tokens * arguments.vocabulary * 4 / 2**20
    print(
        f"{arguments.tokens} tokens, vocabulary {arguments.vocabulary}, hidden {HIDDEN}, float32:"
    )
    print(f"the logits alone are {size:.0f} MiB\n")
    print("| way | peak, MiB | seconds |\n|---|---|---|")
    for way in (0, *CHUNKS):
        found = subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], "--way", str(way)],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.split()
        print(f"| {f'chunks of {way}' if way else 'all logits'} | {found[0]} | {found[1]} |")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--vocabulary", type=int, default=32768)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--way", type=int, help="of a child process: the chunk, 0 for none")
    return parser.parse_args()


def _measure(arguments: argparse.Namespace) -> None:
    import torch

    from benchmarks.memory import PeakMemory
    from trainer.algorithms.logprobs import SamplingDistribution, token_logprobs

    torch.manual_seed(0)
    device, tokens = torch.device(arguments.device), arguments.tokens
    hidden = torch.randn(tokens, HIDDEN, device=device).requires_grad_()
    # As small as a trained head's: else most probabilities are denormal, which CPUs are slow with.
    weight = (0.02 * torch.randn(arguments.vocabulary, HIDDEN, device=device)).requires_grad_()
    targets = torch.randint(arguments.vocabulary, (tokens,), device=device)
    weight.grad, hidden.grad = torch.zeros_like(weight), torch.zeros_like(hidden)
    memory, start = PeakMemory(device), time.perf_counter()
    if arguments.way:
        logprobs, *_ = token_logprobs(
            hidden, weight, targets, SamplingDistribution(), chunk=arguments.way
        )
    else:
        logits = torch.log_softmax((hidden @ weight.t()).float(), dim=-1)
        logprobs = logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    logprobs.sum().backward()
    peak = memory.mib()
    print(f"{peak:.0f} {time.perf_counter() - start:.2f}")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main()
