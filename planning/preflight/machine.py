"""What every run needs: what a bare machine has, a Redis server, and the pinned packages."""

import importlib
import importlib.metadata
import re
from functools import partial

from planning.preflight import bare
from planning.preflight.check import CheckResult, check
from planning.preflight.driver import check_driver, torch_cuda
from planning.preflight.gpus import has_cuda_build, look_for_gpus
from planning.preflight.services import token_checks
from services.bundled import bundled
from services.errors import NotFoundError
from services.redis.server import redis_server_binary

_IMPORTED = ("torch", "torchvision", "transformers", "vllm", "deepspeed", "trl")


def machine_checks() -> list[CheckResult]:
    """Look at each thing for real: import it, find it, run it."""
    return [
        *bare.machine_checks(),
        *bare.start_checks(),
        *token_checks(),
        check("redis", redis_server_binary),
        *(check(name, partial(_import, name)) for name in _IMPORTED),
        *_pins(),
        CheckResult("shipped files", "info", f"settings, toy model, Compose's: {bundled('')}"),
        *_driver(),
    ]


def _driver() -> list[CheckResult]:
    """Beside the CUDA that torch is built for; packages are also installed where no GPU is."""
    cuda = torch_cuda()
    if cuda is None:
        return []
    gpus, problem = look_for_gpus()
    if not gpus:
        return [
            CheckResult("driver", "warning" if problem else "info", problem or "no GPU is seen")
        ]
    version = gpus[0].driver
    fits = f"{version}, and torch is built for CUDA {cuda}"
    return [check("driver", partial(check_driver, version, who="this machine"), ok=fits)]


def _import(name: str) -> str:
    try:
        return str(getattr(importlib.import_module(name), "__version__", "present"))
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        remedy = "on a CPU run `python -m compat.torchvision_cpu --install` first"
        raise NotFoundError(f"{error}: {remedy}") from error


def _pins() -> list[CheckResult]:
    """Installed packages beside the file that this version was tested with."""
    file = bundled("constraints") / ("cuda.txt" if has_cuda_build() else "cpu.txt")
    others = []
    for name, wanted in re.findall(r"^([\w.-]+)==(\S+)", file.read_text(), re.MULTILINE):
        found = installed(name)
        if found is not None and found.partition("+")[0] != wanted.partition("+")[0]:
            others.append(f"{name} {found} (tested: {wanted})")
    if not others:
        return [CheckResult("versions", "ok", f"those of constraints/{file.name}")]
    detail = f"{', '.join(others)}: `pip install -c {file} …` puts them right"
    return [CheckResult("versions", "warning", detail)]


def installed(name: str) -> str | None:
    """A package's version; None where it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
