"""The trainer's ranks on one host: what they listen on while they compute together."""

import subprocess
import sys
from pathlib import Path

import pytest

from services.host.environment import child_environment
from services.host.ports import free_port

RANK = """
import os
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from trainer.ranks.rendezvous import join_ranks

join_ranks("gloo", timedelta(seconds=60))
total = torch.ones(1)
dist.all_reduce(total)
own = {link.readlink().name for link in Path("/proc/self/fd").iterdir() if link.is_symlink()}
for table in ("tcp", "tcp6"):
    for row in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
        fields = row.split()
        if fields[3] == "0A" and f"socket:[{fields[9]}]" in own:
            print("listens", fields[1].partition(":")[0])
print("sum", int(total))
dist.barrier()
dist.destroy_process_group()
"""
LOOPBACK = "0100007F"
"""127.0.0.1 as the kernel writes it."""


@pytest.mark.parametrize("size", [1, 2])
def test_ranks_of_one_host_listen_on_loopback_alone(tmp_path: Path, size: int) -> None:
    """Whatever name of this host they are told to meet at: srun tells its name on the network."""
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    port = str(free_port())
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script)],
            env=child_environment(
                RANK=str(rank),
                WORLD_SIZE=str(size),
                LOCAL_WORLD_SIZE=str(size),
                MASTER_ADDR="192.0.2.1",
                MASTER_PORT=port,
                PYTHONPATH=str(Path.cwd()),
            ),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(size)
    ]
    said = [process.communicate(timeout=120)[0] for process in ranks]
    assert [process.returncode for process in ranks] == [0] * size, said
    for text in said:
        assert f"sum {size}" in text, text
        heard = [line.split()[1] for line in text.splitlines() if line.startswith("listens")]
        assert set(heard) <= {LOOPBACK}, text
    assert size == 1 or f"listens {LOOPBACK}" in said[0]
