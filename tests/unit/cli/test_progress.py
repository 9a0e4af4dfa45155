import json
import logging
from pathlib import Path

import pytest

from cli.views.progress import shown
from services.settings import Settings
from services.telemetry import setup_logging


def settings(folder: Path) -> Settings:
    return Settings.model_validate(
        {
            "run": {"name": "run", "root": str(folder)},
            "model": {"path": "unused"},
            "data": {"train": "unused"},
        }
    )


def test_each_step_is_a_line_to_the_last_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = settings(tmp_path)
    run.run.folder.mkdir()
    with shown(run), (run.run.folder / "metrics.jsonl").open("a") as stream:
        for step in range(3):
            stream.write(json.dumps({"step": step, "num_steps": 3, "reward_mean": 1.5}) + "\n")
            stream.flush()
    lines = capsys.readouterr().out.splitlines()
    assert [line[:8] for line in lines] == ["step 1/3", "step 2/3", "step 3/3"]


def test_logs_go_to_what_stderr_is_now(capsys: pytest.CaptureFixture[str]) -> None:
    before = logging.getLogger().handlers[:]
    try:
        setup_logging("here")
        with pytest.MonkeyPatch.context() as patch:

            class Kept(list[str]):
                write = list.append

                def flush(self) -> None: ...

            kept = Kept()
            patch.setattr("sys.stderr", kept)
            logging.getLogger("x").warning("above the table")
        assert "above the table" in "".join(kept)
        assert capsys.readouterr().err == ""
    finally:
        logging.getLogger().handlers[:] = before
