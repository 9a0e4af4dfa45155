"""The watch's judgement, by hand; `tests/integration/test_hung_ranks.py` has real ranks."""

import re
import time
from pathlib import Path

import pytest

from services.errors import InvalidInputError
from trainer.ranks.group import HungRankError, RemoteRankError
from trainer.ranks.watch import RankWatch, watched

LIMIT_S = 100.0
PAUSE_S = LIMIT_S / 20
GLOO = RuntimeError("[gloo/pair.cc:5] Connection closed by peer")


class Pair:
    """Two ranks that share a folder and a clock; their threads do not run."""

    def __init__(self, folder: Path) -> None:
        self.now = time.monotonic()
        self.ranks = [RankWatch(folder, rank=r, size=2, limit_s=LIMIT_S) for r in range(2)]

    def enter(self, *phases: str) -> None:
        for watch, phase in zip(self.ranks, phases, strict=True):
            watch.enter(phase, 3)

    def after(self, seconds: float, *beating: int) -> str | None:
        """What rank 0 says in the end, while the named ranks beat."""
        end = self.now + seconds
        verdict = None
        while self.now < end and verdict is None:
            self.now += PAUSE_S
            for rank in beating[::-1]:
                verdict = self.ranks[rank].look(self.now)
        return verdict


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    pair = Pair(tmp_path)
    pair.enter("load", "load")
    assert pair.after(20, 0, 1) is None
    return pair


def test_ranks_in_one_phase_may_take_their_time(pair: Pair) -> None:
    assert pair.after(50 * LIMIT_S, 0, 1) is None


def test_a_silent_rank_is_named_after_the_limit(pair: Pair) -> None:
    assert pair.after(LIMIT_S - PAUSE_S, 0) is None
    verdict = pair.after(3 * PAUSE_S, 0)
    assert verdict is not None
    assert "no sign of life" in verdict
    assert "it was in 'load' of step 3" in verdict


def test_a_rank_that_has_not_come_yet_is_waited_for_aloud(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    alone = Pair(tmp_path)
    assert alone.after(LIMIT_S / 2, 0) is None
    assert re.fullmatch(r"waiting \d+ s of 100 s: rank 1 has not come yet", caplog.messages[0])
    assert len(caplog.messages) == 2


def test_a_rank_that_lags_behind_is_named_after_twice_the_limit(pair: Pair) -> None:
    pair.ranks[0].enter("wait", 3)
    assert pair.after(2 * LIMIT_S - 30, 0, 1) is None
    verdict = pair.after(40, 0, 1)
    assert verdict is not None
    assert "hangs in 'load' of step 3 while rank 0 has waited for it in 'wait'" in verdict


def test_a_rank_that_moves_on_is_not_stuck(pair: Pair) -> None:
    for _ in range(5):
        pair.ranks[0].enter("wait", 3)
        assert pair.after(1.5 * LIMIT_S, 0, 1) is None
        pair.ranks[1].enter("wait", 3)
        assert pair.after(10, 0, 1) is None


def test_a_suspended_job_goes_on(pair: Pair) -> None:
    pair.now += 10 * LIMIT_S  # both stood still, and rank 0 is the first to wake up
    assert pair.after(20, 0) is None
    assert pair.after(LIMIT_S, 0, 1) is None


def test_a_rank_that_is_done_is_not_missed(pair: Pair) -> None:
    pair.ranks[1].start()
    pair.ranks[1].stop()
    assert pair.after(5 * LIMIT_S, 0) is None


def test_a_folder_that_is_not_shared_is_no_hung_rank(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    pair.ranks[0].enter("load", 0)  # there is a process group, so rank 1 came
    assert pair.after(5 * LIMIT_S, 0) is None


def test_files_of_an_earlier_start_are_not_believed(tmp_path: Path) -> None:
    earlier = Pair(tmp_path)
    earlier.ranks[1].start()
    earlier.ranks[1].stop(failed="no room")
    verdict = Pair(tmp_path).after(2 * LIMIT_S, 0)
    assert verdict is not None
    assert "rank 1 did not come" in verdict


def end(folder: Path, rank: int, error: Exception) -> None:
    """A rank's main thread ends with an error."""
    with watched(RankWatch(folder, rank=rank, size=2, limit_s=LIMIT_S)) as watch:
        watch.enter("load", 0)
        raise error


def test_a_failed_collective_is_blamed_on_the_rank_that_failed(tmp_path: Path) -> None:
    watch = RankWatch(tmp_path, rank=0, size=2, limit_s=LIMIT_S)
    with pytest.raises(InvalidInputError):
        end(tmp_path, 1, InvalidInputError("no image"))
    explained = watch.explain(GLOO)
    assert isinstance(explained, RemoteRankError)
    assert re.search(r"rank 1 \(host .*\) failed: InvalidInputError: no image", str(explained))


def test_a_failed_collective_that_nobody_explains_lists_the_others(tmp_path: Path) -> None:
    with pytest.raises(HungRankError, match=r"waited .* Connection closed .*1 has not been seen"):
        end(tmp_path, 0, GLOO)


def test_other_errors_pass_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="out of memory"):
        end(tmp_path, 0, RuntimeError("CUDA out of memory"))
