"""The room that the transports through files need, on a file system that has no more."""

import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from services.errors import ConflictError
from services.schemas.weights import Version
from services.settings import Settings
from weight_sync.transports.disk import DiskSender
from weight_sync.transports.files import FileSender
from weight_sync.transports.http import HttpSender
from weight_sync.transports.shm import ShmSender

_FLOATS = 1_500_000
"""Numbers in a version: 6 MB, and 4 MiB for its header."""


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MB: room for two versions, not for three."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m,mode=0700", "tmpfs", str(folder)], check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system takes root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)  # senders stay open


def transport(kind: type[FileSender], folder: Path) -> FileSender:
    class Small(kind):  # type: ignore[misc, valid-type]
        def file(self, version: Version) -> Path:
            return folder / "weights" / version.file_name

    settings = {"model": {"path": "m"}, "data": {"train": "d"}, "trainer": {"wait_timeout_s": 60}}
    return Small(Settings.model_validate(settings))


def write(sender: FileSender, version: int, incarnation: int = 1) -> None:
    sender.prepare(
        iter([("a", torch.full((_FLOATS,), float(version)))]), Version(incarnation, version)
    )


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in (folder / "weights").iterdir())


@pytest.mark.parametrize("kind", [ShmSender, DiskSender])
def test_room_for_two_versions_is_enough(kind: type[FileSender], small: Path) -> None:
    sender = transport(kind, small)
    for version in range(4):
        write(sender, version)
    assert names(small) == ["1-2.safetensors", "1-3.safetensors"]
    # A start after a kill finds a draft, and counts from an earlier step.
    (small / "weights/1-4.draft").write_bytes(bytes(2**20))
    write(transport(kind, small), 2, incarnation=2)
    assert names(small) == ["1-3.safetensors", "2-2.safetensors"]


def test_what_is_sent_needs_room_for_one(small: Path) -> None:
    (small / "other").write_bytes(bytes(12 * 2**20))
    sender = transport(HttpSender, small)
    for version in range(3):
        write(sender, version)
    assert names(small) == ["1-2.safetensors"]


def test_an_earlier_trainer_leaves_its_successors_files(small: Path) -> None:
    earlier, later = transport(ShmSender, small), transport(ShmSender, small)
    write(earlier, 7)
    write(later, 5, incarnation=2)
    earlier.close()
    assert names(small) == ["2-5.safetensors"]


def test_a_full_disk_is_waited_for(small: Path, caplog: pytest.LogCaptureFixture) -> None:
    sender = transport(ShmSender, small)
    write(sender, 0)
    in_the_way = small / "other"
    in_the_way.write_bytes(bytes(8 * 2**20))
    writing = threading.Thread(target=write, args=(sender, 1))
    writing.start()
    while "has no room" not in caplog.text:
        writing.join(0.01)
    in_the_way.unlink()
    writing.join()
    assert names(small) == ["1-0.safetensors", "1-1.safetensors"]
    assert "waiting up to 60 s" in caplog.text


def test_another_run_of_the_name_on_this_host_is_refused_and_told_where(tmp_path: Path) -> None:
    def sender(root: str) -> ShmSender:
        run = {"root": str(tmp_path / root), "name": f"named-{os.getpid()}"}
        settings = {"model": {"path": "m"}, "data": {"train": "d"}, "run": run}
        return ShmSender(Settings.model_validate(settings))

    first, other, again = sender("a"), sender("b"), sender("a")
    write(first, 1)
    with pytest.raises(ConflictError, match=rf"a run of this name goes on in {tmp_path}/a/named"):
        write(other, 1)
    write(again, 2, incarnation=2)  # a later trainer of the same run, while the first stands still
    again.close()
    first.close()
    write(other, 1)
    with pytest.raises(ConflictError, match=f"goes on in {tmp_path}/b/"):
        write(first, 1)
    other.close()
