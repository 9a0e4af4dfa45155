"""What a checkpoint's folder must hold, so that a damaged one is recognised."""

import hashlib
from pathlib import Path

from pydantic import ValidationError

from services.schemas.common import Message, Sha256
from services.schemas.versions import Versioned, parse

MANIFEST_FILE = "manifest.json"
_HASHED_BYTES = 1024 * 1024
"""Larger files are known by their size alone: reading them again would take as long as loading."""


class FileEntry(Message):
    """One file.

    Example: `{"num_bytes": 1234, "sha256": "9f86…0a08"}`
    """

    num_bytes: int
    sha256: Sha256 | None = None
    """Only of files of up to a MiB."""


class Manifest(Versioned):
    """All files of a folder but this one, by their path in it."""

    files: dict[str, FileEntry]


def write_manifest(folder: Path) -> None:
    """List what is in a folder now."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    entries = {str(path.relative_to(folder)): _entry(path) for path in files}
    (folder / MANIFEST_FILE).write_text(Manifest(files=entries).model_dump_json(indent=1))


def damage(folder: Path) -> str | None:
    """What is wrong with a folder, by its manifest; None when it is whole."""
    file = folder / MANIFEST_FILE
    if not file.is_file():
        return f"{MANIFEST_FILE} is missing"
    try:
        manifest = parse(Manifest, file.read_bytes())
    except ValidationError as error:
        return f"{MANIFEST_FILE} is damaged, or another release's: {error.errors()[0]['msg']}"
    for name, wanted in manifest.files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != wanted.num_bytes:
            return f"{name} has {path.stat().st_size} bytes, not {wanted.num_bytes}"
        if wanted.sha256 is not None and _entry(path).sha256 != wanted.sha256:
            return f"{name} is damaged: its sha256 is another"
    return None


def _entry(path: Path) -> FileEntry:
    size = path.stat().st_size
    small = size <= _HASHED_BYTES
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest() if small else None
    return FileEntry(num_bytes=size, sha256=sha256)
