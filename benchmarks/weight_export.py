"""Memory and time of exporting a ZeRO-3 policy's weights: in buckets, whole, and into a file.

    torchrun --nproc-per-node 2 -m benchmarks.weight_export

Makes a Qwen2.5-VL of about 170 million random parameters, shards it, and prints for each way the
seconds, each rank's CPU seconds, and what its resident memory rose by at its peak. The naive way is
DeepSpeed's own: the whole state dict on rank 0 (`_zero3_consolidated_16bit_state_dict`). A version
in `/dev/shm` is written by rank 0 alone, and by all ranks. Linux only.
"""

import argparse
import os
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Callable
from itertools import count
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import AutoConfig, AutoModelForImageTextToText

from scene_data.toy.tiny_model import make_tiny_model
from services.settings import Settings
from tests.integration.engine_driver import Writing
from trainer.policy.engine import PolicyEngine, init_process_group
from trainer.policy.export import num_bytes
from trainer.ranks.group import Ranks
from weight_sync.transports.host import on_host

MIB = 2**20
_ROUNDS = 5


def main() -> None:
    """Run all ways, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--buckets-mib", type=int, nargs="+", default=[16, 64, 256])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    init_process_group(120)
    # torchrun is the parent of all ranks.
    folder = Path(tempfile.gettempdir()) / f"sgg-weight-export-{os.getppid()}"
    make_model(folder)
    engine = PolicyEngine(settings_of(folder), dist.get_world_size())
    dist.barrier()
    if dist.get_rank() == 0:
        shutil.rmtree(folder)
    total = sum(num_bytes(p) for p in engine._model.parameters())
    ranks = f"{dist.get_world_size()} ranks"
    say(f"| {total / MIB:.0f} MiB of weights, {ranks} | seconds | CPU seconds | extra MiB |")
    say("|---|---|---|---|")
    for bucket in arguments.buckets_mib:
        engine._settings = settings_of(folder, bucket / 1024)
        row(f"buckets of {bucket} MiB", lambda: deque(on_host(engine.weights()), maxlen=0))
    row("the whole state dict", engine._engine._zero3_consolidated_16bit_state_dict)
    versions, one = count(1), Writing(engine, Ranks(120), settings_of(folder))
    row("a file, by rank 0 alone", lambda: one.publish(next(versions), [0]))
    row("a file, by all ranks", lambda: one.publish(next(versions), one.file.writers))
    if one.publisher is not None:
        one.publisher.close()


def make_model(folder: Path) -> None:
    """The tiny model's tokenizer and processor, with wider layers."""
    if dist.get_rank() == 0:
        make_tiny_model(folder)
        config = AutoConfig.from_pretrained(folder)
        text = config.text_config
        text.hidden_size, text.intermediate_size, text.num_hidden_layers = 1024, 4096, 10
        text.num_attention_heads, text.num_key_value_heads = 32, 32
        text.layer_types = ["full_attention"] * text.num_hidden_layers
        config.vision_config.out_hidden_size = 1024
        AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    dist.barrier()


def settings_of(folder: Path, export_bucket_gib: float = 0.5) -> Settings:
    """Settings of a policy that is sharded and sampled in float32."""
    return Settings.model_validate(
        {
            "model": {"path": str(folder), "dtype": "float32"},
            "data": {"train": "unused"},
            "deepspeed": {"zero_stage": 3, "export_bucket_gib": export_bucket_gib},
            "trainer": {"num_ranks": dist.get_world_size()},
        }
    )


def row(name: str, work: Callable[[], object]) -> None:
    """Medians of some rounds, after one that warms the allocator up."""
    work()
    found = torch.zeros(_ROUNDS, dist.get_world_size(), 3)
    for of_round in found:
        before, start, cpu = reset_peak(), time.perf_counter(), time.process_time()
        work()
        took = time.perf_counter() - start, time.process_time() - cpu
        rise = (resident("VmHWM") - before) / MIB
        of_round[dist.get_rank()] = torch.tensor([*took, rise])
    dist.all_reduce(found)
    seconds, cpus, rises = found.median(0).values.T.tolist()
    shown = ", ".join(f"{cpu:.2f}" for cpu in cpus), ", ".join(f"{rise:.0f}" for rise in rises)
    say(f"| {name} | {seconds[0]:.2f} | {' | '.join(shown)} |")


def reset_peak() -> int:
    """Let the kernel count the peak anew; returns the present bytes."""
    dist.barrier()
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def resident(field: str) -> int:
    """Bytes, from `/proc/self/status`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(field))
    return int(line.split()[1]) * 1024


def say(text: str) -> None:
    """On one rank."""
    if dist.get_rank() == 0:
        print(text, flush=True)


if __name__ == "__main__":
    main()
