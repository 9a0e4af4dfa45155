"""Tensors between two threads: all arrive, and a failure on either side leaves nobody waiting."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from services.errors import UnavailableError
from weight_sync.publishing.handover import Handover

WAIT_S = 20
"""Longer than any of this takes: a hang fails the test."""


def tensors(count: int, taken: list[int] | None = None) -> Iterator[tuple[str, Tensor]]:
    for i in range(count):
        if taken is not None:
            taken.append(i)
        yield f"t{i}", torch.full((2,), float(i))


def test_all_arrive_in_order_and_few_wait() -> None:
    handover, taken = Handover(size=2), list[int]()
    begin = threading.Event()
    ahead: list[int] = []

    def send() -> list[str]:
        assert begin.wait(WAIT_S)
        names: list[str] = []
        for name, tensor in handover:
            ahead.append(len(taken) - len(names))
            assert tensor[0] == len(names)
            names.append(name)
        return names

    with ThreadPoolExecutor(1) as pool:
        sent = pool.submit(send)
        begin.set()
        handover.fill(tensors(20, taken))
        assert sent.result(WAIT_S) == [f"t{i}" for i in range(20)]
    assert max(ahead) <= 4, "two in the queue, one at either end"


def test_the_sender_gets_the_failure_of_the_training_thread() -> None:
    handover = Handover()

    def failing() -> Iterator[tuple[str, Tensor]]:
        yield from tensors(2)
        raise RuntimeError("a rank is gone")

    with ThreadPoolExecutor(1) as pool:
        sent = pool.submit(lambda: list(handover))
        with pytest.raises(RuntimeError, match="a rank is gone"):
            handover.fill(failing())
        with pytest.raises(RuntimeError, match="a rank is gone"):
            sent.result(WAIT_S)


@pytest.mark.parametrize("received", [0, 1, 5])
def test_a_sender_that_fails_leaves_the_collective_running(received: int) -> None:
    """The training thread exhausts its iterator, and does not wait for room."""
    handover, taken = Handover(size=1), list[int]()

    def send() -> None:
        try:
            for _ in range(received):
                next(iter(handover))
        finally:
            handover.leave()

    with ThreadPoolExecutor(2) as pool:
        filled = pool.submit(handover.fill, tensors(50, taken))
        pool.submit(send).result(WAIT_S)
        filled.result(WAIT_S)
    assert taken == list(range(50))


def test_a_sender_whose_disk_is_full_keeps_nobody_who_is_to_stop() -> None:
    """The training thread gathers to the end; the sender, once it goes on, has an error."""
    stop, room = threading.Event(), threading.Event()
    handover, taken = Handover(size=1, stop_asked=stop.is_set), list[int]()

    def send() -> list[str]:
        assert room.wait(WAIT_S)
        return [name for name, _ in handover]

    with ThreadPoolExecutor(2) as pool:
        sent = pool.submit(send)
        filled = pool.submit(handover.fill, tensors(50, taken))
        stop.set()
        filled.result(WAIT_S)
        room.set()
        with pytest.raises(UnavailableError, match="given up"):
            sent.result(WAIT_S)
    assert taken == list(range(50))
