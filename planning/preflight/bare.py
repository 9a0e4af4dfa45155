"""What a machine must have before anything is installed on it: Python's standard library alone.

`make setup` runs it first (`python -m planning.preflight.bare ENVIRONMENT EXTRA`), `sgg-rl doctor`
looks at the same things, and a start at those that can change since: memory, `/dev/shm`, caches.
"""

import ctypes
import importlib.util
import os
import platform
import re
import shutil
import sys
import sysconfig
import textwrap
from collections.abc import Iterator
from pathlib import Path

from planning.preflight.check import CheckResult, check
from services.errors import NotFoundError, SettingsError

OLDEST, NEWEST = (3, 11), (3, 14)
"""Versions of Python for which every pinned package has wheels."""
_PYTHON = f"python{sysconfig.get_python_version()}"
_GIB = 2**30
_ENVIRONMENT_GIB = {"cpu": 4, "cuda": 12}
"""What an environment takes: 3.0 and 8.7 GB, and room to unpack in."""
_LIBNUMA = "libnuma.so.1"
_SHM_MIB = 192
"""vLLM's 160, and three versions of the demo's weights."""
_MEMORY_GIB = 6
"""The demo's parts together."""
_UNSAFE = re.compile(r"[\s:;#$%&'\"\\()*?<>|]")
"""What make, the linker or a script's first line takes for something else in a path."""


def install_checks(environment: Path, extra: str) -> list[CheckResult]:
    """Look at what the set-up needs.

    Args:
        environment: Folder of the virtual environment, there or not.
        extra: `cpu` or `cuda`: which packages it gets.
    """
    return [
        *machine_checks(),
        check("venv", _venv),
        check("path", lambda: _path(environment.absolute())),
        check("disk", lambda: _disk(environment, _ENVIRONMENT_GIB[extra])),
        check("uv's cache", lambda: _writable(_moved_by({"UV_CACHE_DIR": "uv"}))),
        *start_checks(),
    ]


def machine_checks() -> list[CheckResult]:
    """Look at Python, the compiler and a library, which stay as they are."""
    return [
        check("python", _python),
        check("Python headers", _headers),
        check("C++ compiler", _compiler),
        check("libnuma", _libnuma),
    ]


def start_checks() -> list[CheckResult]:
    """Look at what a start of vLLM and of the trainer needs, and what may change between two."""
    return [
        check("memory", lambda: _memory(available_memory())),
        check("/dev/shm", lambda: _shm(Path("/dev/shm"))),
        check("caches", lambda: _writable(_caches())),
    ]


def check_start(*names: str) -> None:
    """Refuse a start that would end minutes later, or be killed.

    Args:
        names: What to look at, by the checks' names.

    Raises:
        SettingsError: One line with what is missing and what to do.
    """
    for result in start_checks():
        if result.name in names and result.state == "missing":
            raise SettingsError(result.detail)


def _python() -> str:
    found = platform.python_version()
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        raise NotFoundError(
            f"this is Python {found}, and the packages are built for 3.11 to 3.14: install one, "
            "or let uv bring it (pip install uv && uv python install 3.12), and name it "
            "(make setup PYTHON=$(uv python find 3.12))"
        )
    return found


def _headers() -> str:
    file = Path(sysconfig.get_path("include")) / "Python.h"
    if not file.is_file():
        raise NotFoundError(
            f"no {file}: an op of DeepSpeed is compiled with it; install Python's headers "
            f"(Debian, Ubuntu: apt-get install {_PYTHON}-dev; Fedora: dnf install python3-devel)"
        )
    return str(file)


def _compiler() -> str:
    found = shutil.which("g++")
    if found is None:
        raise NotFoundError(
            "no g++ on PATH: DeepSpeed and vLLM compile with it; install it (Debian, Ubuntu: "
            "apt-get install g++; Fedora: dnf install gcc-c++)"
        )
    return found


def _libnuma() -> str:
    try:
        ctypes.CDLL(_LIBNUMA)
    except OSError as error:
        raise NotFoundError(
            f"no {_LIBNUMA}: vLLM's own code for CPUs loads it; install it (Debian, Ubuntu: "
            "apt-get install libnuma1; Fedora: dnf install numactl-libs)"
        ) from error
    return _LIBNUMA


def _venv() -> str:
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        raise NotFoundError(
            f"{sys.executable} cannot make a virtual environment: install {_PYTHON}-venv "
            "(Debian, Ubuntu: apt-get install python3-venv)"
        )
    return "present"


def _path(environment: Path) -> str:
    found = _UNSAFE.search(str(environment))
    if found:
        raise SettingsError(
            f"the path {environment} has the character {found[0]!r}, which compilers and scripts "
            "take for something else: move the clone to a folder without it"
        )
    return str(environment)


def _disk(environment: Path, needed_gib: int) -> str:
    if (environment / "bin").is_dir():
        return f"{environment} is there"
    free_gib = shutil.disk_usage(nearest(environment)).free / _GIB
    sizes = f"{needed_gib} GiB wanted for the packages, {free_gib:.1f} GiB free"
    if free_gib < needed_gib:
        raise SettingsError(
            f"{sizes} in {environment.parent}: free some, or put the environment elsewhere "
            "(make setup VENV=/folder/with/room)"
        )
    return sizes


def _shm(folder: Path) -> str:
    try:
        free_mib = shutil.disk_usage(folder).free >> 20
    except OSError as error:
        raise NotFoundError(f"no {folder} ({error.strerror}): vLLM's processes need it") from error
    if free_mib < _SHM_MIB:
        raise SettingsError(
            f"{free_mib} MiB free in {folder}, and vLLM with the demo's weights takes {_SHM_MIB}: "
            "make it larger (docker run --shm-size 1g; mount -o remount,size=1g /dev/shm), or "
            "remove what ended processes left there"
        )
    return f"{free_mib} MiB free"


def available_memory() -> int:
    """Bytes that this process and its children can still take: the machine's, or the cgroup's."""
    meminfo = Path("/proc/meminfo").read_text()
    available = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo, re.MULTILINE)
    found = [int(available[1]) * 1024] if available else []
    return min([*found, *_cgroup_free(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"))])


def _cgroup_free(root: Path, membership: Path) -> Iterator[int]:
    """What each cgroup of this process leaves of its limit, in version 1 and 2."""
    for line in membership.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            names = ("memory.max", "memory.current")
            base = root
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
            base = root / "memory"
        else:
            continue
        folder = base / path.lstrip("/")
        for place in (folder, *folder.parents):
            limit, used = (place / name for name in names)
            if limit.is_file() and used.is_file() and limit.read_text().strip() != "max":
                cached = _reclaimable(place / "memory.stat")
                yield int(limit.read_text()) - int(used.read_text()) + cached
            if place == base:
                break


def _reclaimable(stat: Path) -> int:
    """Bytes of file cache in a cgroup, which it gives up before it kills."""
    if not stat.is_file():
        return 0
    found = re.search(r"^(?:total_)?inactive_file (\d+)$", stat.read_text(), re.MULTILINE)
    return int(found[1]) if found else 0


def _memory(available: int) -> str:
    gib = available / _GIB
    if gib < _MEMORY_GIB:
        raise SettingsError(
            f"{gib:.1f} GiB of memory are free, and vLLM, the trainer and the services take "
            f"{_MEMORY_GIB} with the smallest model: end other programs, or raise the limit of the "
            "container or job"
        )
    return f"{gib:.1f} GiB free"


def _caches() -> dict[str, Path]:
    """Folders that libraries write to at a start, by the variable that moves each."""
    config = os.environ.get("XDG_CONFIG_HOME") or _home() / ".config"
    of_vllm = os.environ.get("VLLM_CONFIG_ROOT") or Path(config) / "vllm"
    caches = _moved_by({"HF_HOME": "huggingface", "VLLM_CACHE_ROOT": "vllm"})
    return caches | {"VLLM_CONFIG_ROOT": Path(of_vllm)}


def _moved_by(names: dict[str, str]) -> dict[str, Path]:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or _home() / ".cache")
    return {variable: Path(os.environ.get(variable) or cache / n) for variable, n in names.items()}


def _home() -> Path:
    return Path(os.environ.get("HOME") or "/")


def _writable(folders: dict[str, Path]) -> str:
    blocked = {
        variable: folder
        for variable, folder in folders.items()
        if not os.access(nearest(folder), os.W_OK | os.X_OK) or not nearest(folder).is_dir()
    }
    if blocked:
        raise SettingsError(
            f"{', '.join(map(str, blocked.values()))} cannot be written: set HOME, or "
            f"{', '.join(blocked)}, to a folder of yours"
        )
    return ", ".join(map(str, folders.values()))


def nearest(folder: Path) -> Path:
    """The folder itself, or what is there of the way to it."""
    ways = (folder, *folder.absolute().parents)
    return next(path for path in ways if os.path.exists(path))  # noqa: PTH110 - Path raises where it may not look


def main() -> None:
    """Print a line for each thing that is missing; exit 1 if there is one."""
    environment, extra = sys.argv[1:]
    found = install_checks(Path(environment), extra)
    missing = [f"{f.name}: {f.detail}" for f in found if f.state == "missing"]
    for text in missing:
        sys.stderr.write(textwrap.fill(text, 80, subsequent_indent="  ", break_long_words=False))
        sys.stderr.write("\n")
    sys.exit(bool(missing))


if __name__ == "__main__":
    main()
