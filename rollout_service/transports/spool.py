"""A server's own folder for what is sent to it; it goes with the server."""

import os
import tempfile
from pathlib import Path

from services.app import host_and_port
from services.settings import Settings


def spool_folder(settings: Settings) -> Path:
    """The same at each start, so that a killed process's leftovers are found."""
    _, port = host_and_port(settings.rollout.url)
    return Path(tempfile.gettempdir()) / f"sgg-{settings.run.name}-{port}-{os.geteuid()}"
