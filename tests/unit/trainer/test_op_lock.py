"""What a killed trainer leaves of DeepSpeed's op stops nobody."""

import subprocess
import sys
from pathlib import Path

import pytest

from services.settings import child_environment
from trainer.policy.op_lock import sole_loader

HOLDER = """
import pathlib, sys
from trainer.policy.op_lock import sole_loader
with sole_loader("op"):
    pathlib.Path(sys.argv[1], "py311_cpu/op/lock").touch()
    print("holds", flush=True)
    sys.stdin.read()
"""


def test_a_killed_loader_leaves_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "py311_cpu/op"
    folder.mkdir(parents=True)
    (folder / "op.so").touch()
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        env=child_environment(TORCH_EXTENSIONS_DIR=str(tmp_path)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"holds\n"
    holder.kill()
    holder.communicate()
    assert (folder / "lock").exists()
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    with sole_loader("op"):
        assert [file.name for file in folder.iterdir()] == ["op.so"]


def test_a_folder_that_cannot_be_written_is_no_hindrance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "file"))
    with sole_loader("op"):
        assert (tmp_path / "file").is_file()
