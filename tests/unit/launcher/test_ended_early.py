"""What `sgg-rl run` says when a part of it died."""

from pathlib import Path

import pytest

from launcher.local_run import _ended_early
from services.run_folder import RunFolder


def test_the_end_of_the_log_has_its_heading_and_what_to_do_comes_last(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    why = "trainer was killed by SIGKILL. End of /r/trainer.log:\n  step 1\n  step 2"
    assert _ended_early(RunFolder(tmp_path), "run", why, 1, began=True) == 1
    assert capsys.readouterr().err == (
        "End of /r/trainer.log:\n  step 1\n  step 2\n"
        "sgg-rl: trainer was killed by SIGKILL. All parts are stopped; "
        f"go on with `sgg-rl run --resume --config {tmp_path}/config.toml`\n"
    )
