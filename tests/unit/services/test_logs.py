"""What every process's log leaves out, in a process of its own."""

import subprocess
import sys
from pathlib import Path

from tests.processes import ROOT

PROGRAM = """
import logging, sys, warnings
from pathlib import Path
from services.telemetry import setup_logging
setup_logging("part", beside=Path(sys.argv[1]))
for _ in range(2):
    with warnings.catch_warnings():
        warnings.warn("Passing `min_pixels` and `max_pixels` to a call", FutureWarning)
logging.getLogger("vllm.config.vllm").warning("Enforce eager set, disabling %s", "all")
logging.getLogger("faster_coco_eval.core.cocoeval").info("DONE (t=0.00s).")
logging.getLogger("vllm.config.vllm").warning("something else")
warnings.warn("another one", FutureWarning)
"""


def test_what_nobody_can_act_on_is_left_out_and_the_rest_is_kept_beside(tmp_path: Path) -> None:
    file = tmp_path / "part.log"
    command = [sys.executable, "-c", PROGRAM, str(file)]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stderr
    first, second, *_ = said.splitlines()
    assert first.endswith("WARNING part vllm.config.vllm: something else")
    assert second.endswith("FutureWarning: another one")
    assert "Passing" not in said
    assert "Enforce" not in said
    assert file.read_text() == f"{first}\n"
