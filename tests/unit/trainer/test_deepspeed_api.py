"""DeepSpeed's ops: built once whoever races, where they belong, and after a builder was killed."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from deepspeed.ops.op_builder.builder import OpBuilder
from deepspeed.ops.op_builder.cpu.builder import CPUOpBuilder

from services.errors import SettingsError
from services.host.environment import child_environment, environment_value
from tests.processes import wait_for
from trainer.policy.deepspeed import op_lock
from trainer.policy.deepspeed.api import guard_ops
from trainer.policy.deepspeed.op_lock import sole_loader

SOURCE = """
#include <Python.h>
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "tiny"};
PyMODINIT_FUNC PyInit_tiny(void) { return PyModule_Create(&module); }
"""
BUILDER = """
import sys
from torch.utils.cpp_extension import load
from trainer.policy.deepspeed.op_lock import sole_loader
with sole_loader("tiny"):
    print(load("tiny", [sys.argv[1]]).__file__)
"""
COMPILER = """#!/bin/sh
case " $* " in *" -c "*)
  echo compiles >>{log}
  while [ -e {hold} ]; do sleep 0.05; done
esac
exec g++ "$@"
"""


class Site:
    """A folder for ops, a small one to build, and a compiler that says when it is called."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "ops"
        self.source = folder / "tiny.cpp"
        self.source.write_text(SOURCE)
        self.hold = folder / "hold"
        """As long as it is there, the compiler waits."""
        self.log = folder / "log"
        self.compiler = folder / "compiler"
        self.compiler.write_text(COMPILER.format(log=self.log, hold=self.hold))
        self.compiler.chmod(0o755)

    def builder(self) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            [sys.executable, "-c", BUILDER, str(self.source)],
            env=child_environment(TORCH_EXTENSIONS_DIR=str(self.root), CXX=str(self.compiler)),
            stdout=subprocess.PIPE,
        )

    def num_compiled(self) -> int:
        return len(self.log.read_text().splitlines()) if self.log.exists() else 0


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_two_that_race_build_once_and_a_killed_one_stops_nobody(site: Site) -> None:
    site.hold.touch()
    killed = site.builder()
    wait_for("the compiler", lambda: site.num_compiled() == 1)
    killed.kill()
    killed.communicate()
    assert (site.root / "tiny/lock").exists(), "torch's own, on which it would wait for ever"
    site.hold.unlink()  # the killed one's compiler goes on, as a real one does
    site.log.unlink()
    builders = [site.builder(), site.builder()]
    outputs = [builder.communicate(timeout=120)[0].decode().strip() for builder in builders]
    assert outputs == [str(site.root / "tiny/tiny.so")] * 2
    assert site.num_compiled() == 1


class Tiny(CPUOpBuilder):  # type: ignore[misc]
    def __init__(self, source: Path) -> None:
        super().__init__(name="tiny")
        self._source = source

    def absolute_name(self) -> str:
        return "tests.tiny_op"

    def sources(self) -> list[str]:
        return [str(self._source)]

    def cxx_args(self) -> list[str]:
        return []


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed knows of no op yet."""
    monkeypatch.setattr(OpBuilder, "_loaded_ops", {})
    monkeypatch.setattr(OpBuilder, "jit_load", OpBuilder.jit_load)
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)


@pytest.mark.usefixtures("unloaded")
def test_deepspeeds_ops_are_built_in_the_environment_and_found_there_when_it_is_read_only(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "prefix", str(site.root))
    guard_ops()
    guard_ops()
    library = site.root / "torch_extensions/tiny/tiny.so"
    assert Tiny(site.source).load().__file__ == str(library)
    assert environment_value("TORCH_EXTENSIONS_DIR") == str(site.root / "torch_extensions")
    assert (site.root / "torch_extensions/tiny.lock").exists()
    OpBuilder._loaded_ops.clear()
    read_only(monkeypatch, site.root)
    site.source.write_text("no C++ any more")
    assert Tiny(site.source).load().__file__ == str(library)


@pytest.mark.usefixtures("unloaded")
def test_where_nothing_can_be_written_one_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "environment"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    read_only(monkeypatch, tmp_path / "environment")
    with sole_loader("op"):
        assert (tmp_path / "cache/torch_extensions/op.lock").exists()
        assert environment_value("TORCH_EXTENSIONS_DIR") is None, "torch's own place below it"
    read_only(monkeypatch, tmp_path)
    with pytest.raises(SettingsError, match=r"neither .*environment.* nor .*cache.* can be"):
        sole_loader("op").__enter__()
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "named"))
    with pytest.raises(SettingsError, match=r"TORCH_EXTENSIONS_DIR = '.*named' cannot be written"):
        sole_loader("op").__enter__()


def read_only(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """For root too, which may write into folders that others may not."""

    def access(path: Any, mode: int, **options: Any) -> bool:
        return not Path(path).is_relative_to(folder) and os.access(path, mode, **options)

    monkeypatch.setattr(op_lock, "os", type("os", (), {"access": access, "W_OK": 2, "X_OK": 1}))
