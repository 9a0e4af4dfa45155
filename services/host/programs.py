"""Programs that came with this environment's packages."""

import os
import sys
from pathlib import Path


def own_programs_on_path() -> None:
    """Let libraries find this environment's programs, such as ninja, where it is not activated."""
    folder, path = str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)  # noqa: TID251
    if folder not in path.split(os.pathsep):
        os.environ["PATH"] = f"{folder}{os.pathsep}{path}"  # noqa: TID251
