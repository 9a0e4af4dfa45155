"""The environment variables of this process and of those that it starts.

Beside this file `services.settings.section` alone reads them: it fills them into paths.
"""

import os
import sys
from pathlib import Path

_LARGE_PAGES = "THP_MEM_ALLOC_ENABLE"


def environment_value(name: str) -> str | None:
    """One variable set by another tool, such as torchrun's `RANK`."""
    return os.environ.get(name)  # noqa: TID251


def set_environment(name: str, value: str) -> None:
    """Set a variable that a library reads."""
    os.environ[name] = value  # noqa: TID251


def child_environment(**extra: str) -> dict[str, str]:
    """This process's environment plus `extra`, for a process to be started."""
    return {**os.environ, **extra}  # noqa: TID251


def part_environment(**extra: str) -> dict[str, str]:
    """As `child_environment`, for `python -m` in the user's folder.

    A file `services.py` there would be taken for ours; so Python, and what it starts, looks for no
    module there.
    """
    return child_environment(PYTHONSAFEPATH="1", **extra)


def start_command(otherwise: str) -> str:
    """The command that starts a part, for messages: its supervisor's where it has one.

    The supervisor says it in `SGG_START_COMMAND`.
    """
    return environment_value("SGG_START_COMMAND") or otherwise


def own_programs_on_path() -> None:
    """Let libraries find this environment's programs, such as ninja, where it is not activated."""
    folder, path = str(Path(sys.executable).parent), environment_value("PATH") or os.defpath
    if folder not in path.split(os.pathsep):
        set_environment("PATH", f"{folder}{os.pathsep}{path}")


def use_large_pages() -> None:
    """Have torch ask the kernel for pages of 2 MiB in tensors on the CPU, unless the user has said.

    A trainer gives the memory of its gradients and their copies back in every step, and the kernel
    clears each page that is taken again: by 4 KiB that was a third of the CPU time of a trainer
    with a vocabulary of 152,000. torch reads the variable when it first allocates.
    """
    if environment_value(_LARGE_PAGES) is None:
        set_environment(_LARGE_PAGES, "1")
