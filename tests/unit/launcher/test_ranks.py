"""Ranks as processes: who ends how, and what a signal to their parent does."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from launcher.ranks import run_ranks
from tests.processes import ROOT, wait_for

PARENT = "import sys; from launcher.ranks import run_ranks; sys.exit(run_ranks(2, sys.argv[1:]))"
RANK = """
import os, signal, sys, time
from pathlib import Path
from trainer.ranks.stop import stop_request
folder, rank = Path(sys.argv[1]), os.environ["RANK"]
with stop_request() as stop, stop.noted():
    (folder / f"up-{rank}").write_text(str(os.getpid()))
    while not stop.asked:
        time.sleep(0.01)
    (folder / f"asked-{rank}").touch()
    while (folder / "hold").exists():
        time.sleep(0.01)
sys.exit(75)
"""


def test_the_first_failure_is_the_exit_code() -> None:
    by_rank = "import os, sys; sys.exit(3 * int(os.environ['RANK']))"
    assert run_ranks(2, ["-c", by_rank]) == 3
    assert run_ranks(2, ["-c", "pass"]) == 0
    killed = "import os; os.environ['RANK'] == '1' and os.kill(os.getpid(), 9)"
    assert run_ranks(2, ["-c", killed]) == 128 + signal.SIGKILL


def test_each_rank_knows_its_place_and_rank_0_can_listen_at_theirs() -> None:
    code = """
import os, socket
place = {k: int(os.environ[k]) for k in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")}
assert place == {"RANK": place["RANK"], "LOCAL_RANK": place["RANK"]} | {
    "WORLD_SIZE": 3, "LOCAL_WORLD_SIZE": 3}, place
if not place["RANK"]:
    socket.create_server(("", int(os.environ["MASTER_PORT"])))
"""
    assert run_ranks(3, ["-c", code]) == 0


def start(folder: Path) -> "subprocess.Popen[bytes]":
    process = subprocess.Popen([sys.executable, "-c", PARENT, "-c", RANK, str(folder)], cwd=ROOT)
    wait_for("both ranks", lambda: len(pids(folder)) == 2)
    return process


def pids(folder: Path) -> list[int]:
    return [int(text) for file in folder.glob("up-*") if (text := file.read_text())]


def test_a_request_to_stop_reaches_all_and_their_code_comes_back(tmp_path: Path) -> None:
    (tmp_path / "hold").touch()
    process = start(tmp_path)
    process.terminate()
    wait_for("the request", lambda: len([*tmp_path.glob("asked-*")]) == 2)
    assert process.poll() is None, "it waits for the checkpoint"
    (tmp_path / "hold").unlink()
    assert process.wait(30) == os.EX_TEMPFAIL


def test_a_request_to_stop_that_comes_before_they_listen_is_one_all_the_same(
    tmp_path: Path,
) -> None:
    deaf = "import sys, time; open(f'{sys.argv[1]}/up', 'w').write('1'); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", PARENT, "-c", deaf, str(tmp_path)], cwd=ROOT)
    wait_for("a rank", lambda: (tmp_path / "up").exists())
    process.terminate()
    assert process.wait(30) == os.EX_TEMPFAIL


def test_ranks_do_not_outlive_their_parent(tmp_path: Path) -> None:
    process = start(tmp_path)
    process.kill()
    process.wait()
    wait_for(
        "their end", lambda: not any(Path(f"/proc/{pid}/fd/0").exists() for pid in pids(tmp_path))
    )
