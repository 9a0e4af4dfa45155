"""GPUs and driver beside the installed torch, by what `nvidia-smi` says; torch is not loaded."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from planning.preflight import driver, gpus
from planning.preflight.driver import torch_cuda
from planning.preflight.gpus import check_gpus, chosen, has_cuda_build, parsed, visible_gpus
from planning.preflight.machine import machine_checks
from services.errors import SettingsError

ROOT = Path(__file__).parents[3]
A100 = "{0}, GPU-{0}aaa-bbb, NVIDIA A100-SXM4-40GB, 40960, 8.0, {1}\n"
TWO = A100.format(0, "580.95.05") + A100.format(1, "580.95.05")
OLD = A100.format(0, "570.86.15")
# As drivers print them.
NO_DRIVER = (
    "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that "
    "the latest NVIDIA driver is installed and running.\n"
)
LOST = "Unable to determine the device handle for GPU1: 0000:0A:00.0: GPU is lost.\n"
GB10 = "0, GPU-0aaa, NVIDIA GB10, [N/A], 12.1, 580.95.05\n"
PARTS = """\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-0aaa-bbb)
  MIG 3g.20gb     Device  0: (UUID: MIG-11aa-22)
  MIG 1c.2g.10gb  Device  1: (UUID: MIG-33bb-44)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-1aaa-bbb)
  MIG 7g.40gb     Device  0: (UUID: MIG-55cc-66)
"""

Say = Callable[..., None]


def install_torch(folder: Path, version: str, cuda: str | None) -> None:
    """What the wheel puts beside the code; without `__init__.py` the real one is imported still."""
    info = folder / f"torch-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.4\nName: torch\nVersion: {version}\n")
    (folder / "torch").mkdir()
    (folder / "torch/version.py").write_text(
        f"from typing import Optional\n__version__ = '{version}'\n"
        f"cuda: Optional[str] = {cuda!r}\nhip: Optional[str] = None\n"
    )


@pytest.fixture
def nvidia_smi(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Say:
    """A machine with torch for CUDA 13.0; what its `nvidia-smi` prints is the test's to say."""
    programs = tmp_path / "bin"
    programs.mkdir()
    install_torch(tmp_path / "site", "2.13.0", "13.0")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def say(query: str, *, parts: str = "", status: int = 0) -> None:
        (tmp_path / "query").write_text(query)
        (tmp_path / "parts").write_text(parts)
        program = programs / "nvidia-smi"
        program.write_text(
            f"#!/bin/sh\n[ $1 = -L ] && exec cat {tmp_path}/parts\n"
            f"cat {tmp_path}/query\nexit {status}\n"
        )
        program.chmod(0o755)

    say(TWO)
    return say


def refusal(num_needed: int = 1, who: str = "the trainer") -> str:
    with pytest.raises(SettingsError) as caught:
        check_gpus(num_needed, who=who)
    assert "\n" not in caught.value.message
    return caught.value.message


def test_cuda_visible_devices_is_read_as_cuda_does() -> None:
    four = parsed("".join(A100.format(index, "580.95.05") for index in range(4)))

    def names(text: str | None) -> list[int]:
        return [gpu.index for gpu in chosen(four, text)]

    assert names(None) == [0, 1, 2, 3]
    assert names("") == []
    assert names("2,0") == [2, 0]
    assert names("GPU-3aaa,1") == [3, 1]
    assert names("1,7,2") == [1]


@pytest.mark.parametrize(
    ("version", "cuda"), [("2.13.0", "13.0"), ("2.13.0+cpu", None), ("2.13.0", None)]
)
def test_torchs_cuda_is_read_without_loading_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, cuda: str | None
) -> None:
    """On aarch64 a torch for CPUs may have no `+cpu` in its version."""
    install_torch(tmp_path, version, cuda)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert torch_cuda() == cuda
    assert has_cuda_build() == (cuda is not None)
    if cuda is None:
        check_gpus(8, who="the trainer")  # asks for no GPU


def test_torchs_cuda_is_that_of_the_torch_which_is_here() -> None:
    torch = pytest.importorskip("torch")
    assert torch_cuda() == torch.version.cuda


def test_a_start_without_its_gpu_is_refused(
    nvidia_smi: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_gpus(2, who="the trainer")
    assert "the trainer needs 3 GPUs, and 2 can be seen here" in refusal(3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert "1 can be seen here (CUDA_VISIBLE_DEVICES=1)" in refusal(2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # none is wanted
    check_gpus(1, who="a rollout server")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    nvidia_smi("No devices were found\n", status=6)
    assert "none can be seen here: start it where `nvidia-smi` lists them" in refusal()


def test_a_driver_that_is_too_old_for_torch_is_refused(nvidia_smi: Say) -> None:
    nvidia_smi(OLD)
    message = refusal(who="a rollout server")
    assert "a rollout server needs a newer driver than 570.86.15: torch is built for" in message
    assert "CUDA 13.0, so upgrade to 580 or newer" in message
    assert "cuda-compat-13-0 on LD_LIBRARY_PATH" in message
    assert "EXTRA=cpu" in message
    nvidia_smi('Field "compute_cap" is not a valid field to query.\n', status=2)
    assert "older than 510: torch is built for CUDA 13.0" in refusal()


@pytest.mark.parametrize(("cuda", "is_enough"), [("12.8", True), ("13.0", False), ("17.2", True)])
def test_the_oldest_driver_is_that_of_torchs_cuda(
    nvidia_smi: Say, tmp_path: Path, cuda: str, is_enough: bool
) -> None:
    """Nothing is said about a CUDA that is not known yet."""
    (tmp_path / "site/torch/version.py").write_text(f"cuda: Optional[str] = '{cuda}'\n")
    nvidia_smi(OLD)
    if is_enough:
        check_gpus(1, who="the trainer")
    else:
        refusal()


def test_a_newer_library_over_an_old_driver_is_enough(nvidia_smi: Say, tmp_path: Path) -> None:
    """NVIDIA's package cuda-compat; CUDA's own function says what the library can."""
    nvidia_smi(OLD)
    check = "from planning.preflight.gpus import check_gpus; check_gpus(1, who='the trainer')"
    for version, status in ((13000, 0), (12080, 1)):
        source = f'extern "C" int cuDriverGetVersion(int *v) {{ *v = {version}; return 0; }}'
        command = ["g++", "-shared", "-x", "c++", "-", "-o", str(tmp_path / "libcuda.so.1")]
        subprocess.run(command, input=source.encode(), check=True)
        paths = {"LD_LIBRARY_PATH": str(tmp_path), "PYTHONPATH": f"{tmp_path / 'site'}:{ROOT}"}
        done = subprocess.run(
            [sys.executable, "-c", check], env=os.environ | paths, capture_output=True, text=True
        )
        assert done.returncode == status, done.stderr
    assert "needs a newer driver than 570.86.15" in done.stderr


def test_what_is_wrong_with_the_driver_is_said(
    nvidia_smi: Say, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nvidia_smi(NO_DRIVER, status=9)
    assert "none can be seen here: nvidia-smi says: NVIDIA-SMI has failed" in refusal()
    nvidia_smi(A100.format(0, "580.95.05") + LOST, status=15)
    check_gpus(1, who="the trainer")
    assert "1 can be seen here: nvidia-smi says: Unable to determine the device" in refusal(2)
    nvidia_smi(TWO + "WARNING: infoROM is corrupted at gpu 0000:0A:00.0\n", status=14)
    check_gpus(2, who="the trainer")
    (tmp_path / "bin/nvidia-smi").unlink()
    assert "none can be seen here: start it where" in refusal()
    device = tmp_path / "nvidiactl"
    device.touch()
    monkeypatch.setattr(driver, "_TRACES", (device,))
    assert f"{device} shows a driver, but no nvidia-smi is on PATH" in refusal()


def test_a_gpu_without_memory_of_its_own_has_the_systems(
    nvidia_smi: Say, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       125513012 kB\nMemFree:         1234 kB\n")
    monkeypatch.setattr(gpus, "_MEMINFO", meminfo)
    nvidia_smi(GB10)
    (gpu,) = visible_gpus()
    assert str(gpu) == "NVIDIA GB10, 120 GiB of memory, the system's own"
    assert gpu.has_bfloat16
    nvidia_smi(GB10.replace("[N/A]", "[Not Supported]"))
    assert visible_gpus() == [gpu]


@pytest.mark.parametrize("word", ["[Insufficient Permissions]", "[Unknown Error]", "ERR!"])
def test_what_is_not_told_is_not_guessed(nvidia_smi: Say, word: str) -> None:
    nvidia_smi(f"0, GPU-0aaa, NVIDIA H100, {word}, {word}, {word}\n")
    (gpu,) = visible_gpus()
    assert str(gpu) == "NVIDIA H100, memory unknown"
    assert gpu.has_bfloat16
    check_gpus(1, who="the trainer")


def test_parts_of_gpus_are_found_by_their_names(
    nvidia_smi: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvidia_smi(TWO, parts=PARTS)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-33bb-44,MIG-55cc-66")
    (part,) = visible_gpus()  # CUDA shows a process one
    assert str(part) == "NVIDIA A100-SXM4-40GB MIG 1c.2g.10gb, 10 GiB"
    assert (part.index, part.uuid, part.capability) == (0, "MIG-33bb-44", 8.0)
    check_gpus(1, who="a rollout server")
    refusal(2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-77")
    assert "none can be seen here (CUDA_VISIBLE_DEVICES=MIG-77)" in refusal()


@pytest.mark.parametrize(
    ("query", "status", "state", "detail"),
    [
        (TWO, 0, "ok", "580.95.05, and torch is built for CUDA 13.0"),
        (OLD, 0, "missing", "this machine needs a newer driver than 570.86.15"),
        (NO_DRIVER, 9, "warning", "couldn't communicate with the NVIDIA driver"),
        ("", 6, "info", "no GPU is seen"),
    ],
)
def test_the_doctor_compares_driver_and_torch(
    nvidia_smi: Say,
    monkeypatch: pytest.MonkeyPatch,
    query: str,
    status: int,
    state: str,
    detail: str,
) -> None:
    monkeypatch.setattr("planning.preflight.machine._IMPORTED", ())
    nvidia_smi(query, status=status)
    (result,) = (result for result in machine_checks() if result.name == "driver")
    assert result.state == state
    assert detail in result.detail
