"""What is said of a machine before anything is installed on it."""

import importlib.util
import shutil
import subprocess
import sys
import sysconfig
from collections import namedtuple
from pathlib import Path

import pytest

from planning.preflight import bare
from planning.preflight.check import CheckResult
from services.errors import SettingsError

ROOT = Path(__file__).parents[3]
GIB = 2**30
Usage = namedtuple("Usage", "total used free")


def problems(found: list[CheckResult]) -> dict[str, str]:
    return {f.name: f.detail for f in found if f.state == "missing"}


def test_this_machine_has_everything(tmp_path: Path) -> None:
    assert problems(bare.install_checks(tmp_path / "environment", "cpu")) == {}


def test_the_standard_library_is_enough() -> None:
    command = [sys.executable, "-S", "-m", "planning.preflight.bare", "build/new", "cpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_problem_is_a_line_of_80_columns(tmp_path: Path) -> None:
    place = tmp_path / "a folder"
    command = [sys.executable, "-m", "planning.preflight.bare", str(place), "cpu"]
    blocked = tmp_path / "file"
    blocked.touch()
    environment = {"PATH": str(tmp_path), "HOME": "/", "HF_HOME": str(blocked / "cache")}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    heads = [line.partition(":")[0] for line in lines if not line.startswith("  ")]
    assert heads == ["C++ compiler", "path", "caches"]
    assert "apt-get install g++" in done.stderr
    assert all(len(line) <= 80 or " " not in line.strip() for line in lines)


@pytest.mark.parametrize("version", [(3, 10), (3, 15)])
def test_another_python_is_refused_with_a_way_to_get_one(
    version: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "version_info", (*version, 0, "final", 0))
    assert "uv python install" in problems(bare.machine_checks())["python"]


def test_missing_headers_name_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    detail = problems(bare.machine_checks())["Python headers"]
    assert f"apt-get install python3.{sys.version_info.minor}-dev" in detail


def test_a_library_that_vllm_loads_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bare, "_LIBNUMA", "libabsent.so.1")
    assert "apt-get install libnuma1" in problems(bare.machine_checks())["libnuma"]


def test_a_python_without_venv_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "ensurepip" else found(name)
    )
    assert "python3-venv" in problems(bare.install_checks(tmp_path / "new", "cpu"))["venv"]


@pytest.mark.parametrize("name", ["a folder", "a$b", "it's", "a:b", "a#b", "a(b)"])
def test_a_path_that_tools_would_misread_is_refused(name: str, tmp_path: Path) -> None:
    found = problems(bare.install_checks(tmp_path / name / ".venv", "cpu"))
    assert "move the clone" in found["path"]


def test_a_full_disk_is_seen_before_the_download_and_not_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(9 * GIB, 0, 5 * GIB))
    assert "disk" not in problems(bare.install_checks(tmp_path, "cpu"))
    assert "12 GiB wanted" in problems(bare.install_checks(tmp_path, "cuda"))["disk"]
    (tmp_path / "bin").mkdir()
    assert "disk" not in problems(bare.install_checks(tmp_path, "cuda"))


def test_dockers_64_mib_of_shared_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(64 << 20, 0, 64 << 20))
    with pytest.raises(SettingsError, match=r"64 MiB free in /dev/shm.*--shm-size"):
        bare.check_start("memory", "/dev/shm")
    bare.check_start("caches")


def test_the_smallest_limit_of_memory_counts(tmp_path: Path) -> None:
    membership = tmp_path / "cgroup"
    membership.write_text("0::/job/step\n")
    root = tmp_path / "fs"
    step = root / "job" / "step"
    step.mkdir(parents=True)
    for folder, limit in ((root, "max"), (root / "job", str(8 * GIB)), (step, "max")):
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{5 * GIB}\n")
        (folder / "memory.stat").write_text(f"anon 5\ninactive_file {2 * GIB}\n")
    assert list(bare._cgroup_free(root, membership)) == [(8 - 5 + 2) * GIB]


def test_version_1_cgroups_are_read(tmp_path: Path) -> None:
    membership = tmp_path / "cgroup"
    membership.write_text("4:cpu,cpuacct:/\n3:memory:/slurm/job\n")
    job = tmp_path / "fs" / "memory" / "slurm" / "job"
    job.mkdir(parents=True)
    (job / "memory.limit_in_bytes").write_text(str(4 * GIB))
    (job / "memory.usage_in_bytes").write_text(str(GIB))
    (job / "memory.stat").write_text(f"total_inactive_file {GIB}\n")
    assert list(bare._cgroup_free(tmp_path / "fs", membership)) == [4 * GIB]


def test_too_little_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bare, "available_memory", lambda: 3 * GIB)
    assert problems(bare.start_checks())["memory"].startswith("3.0 GiB of memory are free")


def test_caches_are_where_their_variables_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    monkeypatch.setenv("HOME", str(blocked))
    for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "vllm"))
    detail = problems(bare.start_checks())["caches"]
    assert detail == (
        f"{blocked}/.cache/huggingface, {blocked}/.config/vllm cannot be written: set HOME, or "
        "HF_HOME, VLLM_CONFIG_ROOT, to a folder of yours"
    )
