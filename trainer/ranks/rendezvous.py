"""How the trainer's processes find each other, without a port that other hosts reach."""

import socket
from datetime import timedelta

import torch.distributed as dist

from services.host.addresses import is_loopback
from services.host.environment import environment_value, set_environment
from trainer.ranks.group import launched_as

_LOOPBACK = "127.0.0.1"


def join_ranks(backend: str, timeout: timedelta) -> None:
    """Make torch's process group, as torchrun, srun or `sgg-rl train` started this process.

    One that this process has already stays.

    torch's own store listens on every address of the host and asks for no token. Where all ranks
    are on one host it listens on loopback here, and so does gloo. Under torchrun the store is
    torchrun's, and over several hosts the network between them must be trusted.

    Args:
        backend: `nccl` or `gloo`.
        timeout: For the others to come, and of each collective.
    """
    if dist.is_initialized():
        return
    rank, size = launched_as()
    if not _on_one_host(size):
        dist.init_process_group(backend, timeout=timeout)
        return
    if environment_value("GLOO_SOCKET_IFNAME") is None:
        set_environment("GLOO_SOCKET_IFNAME", "lo")
    store = _loopback_store(rank, size, timeout) if size > 1 else dist.HashStore()
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)


def _on_one_host(size: int) -> bool:
    if environment_value("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return False
    local_size = environment_value("LOCAL_WORLD_SIZE")
    if local_size is not None:
        return int(local_size) == size
    return size == 1 or is_loopback(environment_value("MASTER_ADDR") or "")


def _loopback_store(rank: int, size: int, timeout: timedelta) -> dist.TCPStore:
    port = int(environment_value("MASTER_PORT") or 0)
    # The store closes it.
    descriptor = socket.create_server((_LOOPBACK, port)).detach() if rank == 0 else None
    return dist.TCPStore(
        _LOOPBACK, port, size, rank == 0, timeout=timeout, master_listen_fd=descriptor
    )
