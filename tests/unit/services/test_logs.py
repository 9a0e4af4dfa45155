"""What every process's log leaves out, in a process of its own."""

import os
import pty
import subprocess
import sys
from pathlib import Path

from tests.processes import ROOT

PROGRAM = """
import logging, sys, warnings
from pathlib import Path
from services.printable import quiet_libraries
from services.telemetry import setup_logging
quiet_libraries()
logging.getLogger("early.library").warning("before there is a log")
logging.getLogger("transformers").addHandler(logging.StreamHandler())
setup_logging("part", beside=Path(sys.argv[1]))
for _ in range(2):
    with warnings.catch_warnings():
        warnings.warn("Passing `min_pixels` and `max_pixels` to a call", FutureWarning)
logging.getLogger("vllm.config.vllm").warning("Enforce eager set, disabling %s", "all")
logging.getLogger("faster_coco_eval.core.cocoeval").info("DONE (t=0.00s).")
logging.getLogger("vllm.config.vllm").warning("something else")
warnings.warn("another one", FutureWarning)
logging.getLogger("transformers.models").warning("some weights are new")
logging.getLogger("transformers.models").error("it broke")
logging.getLogger("services.here").warning("our own")
"""


ON_A_TERMINAL = """
import logging, subprocess, sys
from pathlib import Path
from services.printable import quiet_libraries
from services.telemetry import own_terminal
quiet_libraries()
with own_terminal("part", Path(sys.argv[1])):
    logging.getLogger("services.here").info("our own")
    subprocess.run(["sh", "-c", "echo a child; echo its fault >&2"])
    print("a library's print", file=sys.stderr)
    logging.getLogger("vllm").warning("a library's log")
    logging.getLogger("vllm").error("it broke")
sys.stderr.write("at the end\\n")
"""


def test_a_terminal_shows_our_lines_and_the_log_all(tmp_path: Path) -> None:
    file = tmp_path / "logs/part.log"
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", ON_A_TERMINAL, str(file)]
    subprocess.run(command, cwd=ROOT, stdout=theirs, stderr=theirs, check=True)
    os.close(theirs)
    shown = os.read(ours, 100_000).decode().splitlines()
    os.close(ours)
    assert [line.rpartition(": ")[2] for line in shown] == [
        f"what libraries say goes to {file}",
        "our own",
        "it broke",
        "at the end",
    ]
    kept = [line.rpartition(": ")[2] for line in file.read_text().splitlines()]
    assert kept == [
        *(f"what libraries say goes to {file}", "our own", "a child", "its fault"),
        *("a library's print", "a library's log", "it broke"),
    ]


def test_what_libraries_say_is_kept_beside_and_only_what_failed_is_shown(tmp_path: Path) -> None:
    file = tmp_path / "part.log"
    command = [sys.executable, "-c", PROGRAM, str(file)]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stderr
    broke, own = said.splitlines()
    assert broke.endswith("ERROR   part transformers.models: it broke")
    assert own.endswith("WARNING part services.here: our own")
    other, another, new, *shown = file.read_text().splitlines()
    assert other.endswith("WARNING part vllm.config.vllm: something else")
    assert "FutureWarning: another one" in another
    assert new.endswith("WARNING part transformers.models: some weights are new")
    assert shown == [broke, own]
