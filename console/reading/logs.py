"""The logs of a run: which there are, and the end of one."""

import os
from dataclasses import dataclass
from urllib.parse import quote

from services.errors import NotFoundError
from services.run_folder import RunFolder

TAIL_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class Log:
    """A log's end."""

    name: str
    num_bytes: int
    changed: float
    """Unix time of its last line."""
    lines: list[str]
    """The last ones; empty where only its name is asked for."""
    is_whole: bool

    @property
    def quoted(self) -> str:
        """Its name as a part of a URL."""
        return quote(self.name, safe="")


def logs(files: RunFolder) -> list[Log]:
    """The logs of a run by name, without their lines."""
    found = []
    for path in sorted(files.logs.glob("*.log")):
        if path.is_file():
            stat = path.stat()
            found.append(Log(path.name, stat.st_size, stat.st_mtime, [], is_whole=False))
    return found


def log_tail(files: RunFolder, name: str, num_bytes: int = TAIL_BYTES) -> Log:
    """The end of a log.

    Raises:
        NotFoundError: The run has no log of that name.
    """
    path = next((path for path in files.logs.glob("*.log") if path.name == name), None)
    if path is None or not path.is_file():
        raise NotFoundError(f"the run in {files.path} has no log {name!r}")
    with path.open("rb") as stream:
        stat = os.fstat(stream.fileno())
        start = max(0, stat.st_size - num_bytes)
        stream.seek(start)
        lines = stream.read(num_bytes).decode(errors="replace").splitlines()
    return Log(name, stat.st_size, stat.st_mtime, lines[bool(start) :], is_whole=not start)
