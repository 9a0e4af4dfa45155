"""What every process's log leaves out, in a process of its own."""

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
