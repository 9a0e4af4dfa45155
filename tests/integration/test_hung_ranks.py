"""Two ranks over gloo, one of which stops taking part: the other ends and names it."""

import multiprocessing
import re
from collections.abc import Iterator
from contextlib import ExitStack
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from services.host.ports import free_port
from tests.integration import rank_driver

LIMIT_S = 2.0
CULPRIT = r"rank 1 \(host \S+, pid {pid}\)"
WAITED = r"rank 0 \(.*\) waited for the other ranks in 'train' of step 3: .*gloo.*\. "
SAYS = {
    "stopped": CULPRIT + " has given no sign of life for .* it was in 'prepare' of step 3",
    "stuck": CULPRIT + " hangs in 'prepare' of step 3 while rank 0 has waited for it in 'train'",
    "stuck together": WAITED + CULPRIT + " is in 'train' of step 3",
    "killed": WAITED + CULPRIT + " is in 'prepare' of step 3",
    "failed": CULPRIT + " failed: InvalidInputError: row 7 has no image",
    "absent": "rank 1 did not come in 2 s",
}


class Pair:
    """Rank 0, and rank 1 with a fault."""

    def __init__(self, folder: Path, fault: str) -> None:
        folder.mkdir()
        self.logs = [folder / f"log-{rank}" for rank in range(2)]
        self._place = (folder / "ranks", free_port(), fault)
        self.processes = [self._start(rank) for rank in range(1 if fault == "absent" else 2)]

    def _start(self, rank: int) -> BaseProcess:
        ranks, port, fault = self._place
        process = CONTEXT.Process(
            target=rank_driver.main, args=(ranks, self.logs[rank], port, rank, LIMIT_S, fault)
        )
        process.start()
        return process

    def said(self, rank: int) -> tuple[int | None, str]:
        """How a rank ended: exit code and its line."""
        self.processes[rank].join(60)
        lines = self.logs[rank].read_text().splitlines()
        return self.processes[rank].exitcode, "".join(li for li in lines if "sgg-rl: " in li)

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()


CONTEXT = multiprocessing.get_context("forkserver")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Pair]]:
    """One for each fault, all at the same time: they mostly wait."""
    CONTEXT.set_forkserver_preload([rank_driver.__name__])  # torch is imported once for all
    folder = tmp_path_factory.mktemp("ranks")
    warm = CONTEXT.Process(target=sorted, args=([],))
    warm.start()
    warm.join()
    with ExitStack() as stack:
        pairs = {}
        for fault in SAYS:
            pairs[fault] = Pair(folder / fault, fault)
            stack.callback(pairs[fault].end)
        yield pairs


@pytest.mark.parametrize("fault", SAYS)
def test_the_rank_that_keeps_others_waiting_is_named(pairs: dict[str, Pair], fault: str) -> None:
    pair = pairs[fault]
    code, line = pair.said(0)
    says = SAYS[fault].format(pid=pair.processes[-1].pid)
    assert code == 1
    assert re.search(says, line), line


@pytest.mark.parametrize("fault", ["stuck", "stuck together"])
def test_a_rank_that_nobody_waits_for_any_more_ends_too(pairs: dict[str, Pair], fault: str) -> None:
    code, line = pairs[fault].said(1)
    assert code == 1
    assert re.search(r"rank 0 \(.*\) failed: ", line), line
