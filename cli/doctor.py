"""Is everything here that a run needs?"""

import importlib
import importlib.metadata
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass

from services.redis_server import redis_server_binary


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that must be here."""

    name: str
    ok: bool
    detail: str


def checks() -> list[Check]:
    """Look at each thing for real: import it, find it, run it."""
    return [
        _check("python", _python),
        _check(
            "C++ compiler",
            lambda: _program("g++", "DeepSpeed builds a communication op at first use"),
        ),
        _check("redis", redis_server_binary),
        *(
            _check(name, _importer(name))
            for name in ("torch", "torchvision", "transformers", "vllm", "deepspeed", "trl")
        ),
    ]


def _check(name: str, find: Callable[[], str]) -> Check:
    try:
        return Check(name, True, find())
    except Exception as error:  # noqa: BLE001 - whatever goes wrong is the finding
        return Check(name, False, f"{type(error).__name__}: {error}")


def _python() -> str:
    if not (3, 11) <= sys.version_info[:2] <= (3, 12):
        raise RuntimeError(f"Python {platform.python_version()}; 3.11 or 3.12 is needed")
    return platform.python_version()


def _program(name: str, purpose: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise RuntimeError(
            f"no {name} on PATH ({purpose}): install it with the system's package manager"
        )
    return found


def _importer(name: str) -> Callable[[], str]:
    def find() -> str:
        module = importlib.import_module(name)
        return str(getattr(module, "__version__", "present"))

    return find
