"""A version's file: opened where it must be, and compared byte by byte."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from rollout_service.transports.safetensors_file import stage_file
from services.errors import InvalidInputError, NotFoundError
from services.schemas.weights import TensorEntry
from tests.shm_versions import Arrays, ShmRun, ShmVersion, tensors_of


def test_a_good_file_is_staged_and_readable_even_when_its_name_is_gone(shm_run: ShmRun) -> None:
    version = shm_run.write(3)
    content = version.file.read_bytes()
    staged = stage_file(version.file, version.manifest.tensors)
    version.file.unlink()
    assert staged.path.read_bytes() == content
    staged.close()
    staged.close()
    assert not staged.path.exists()


def test_nothing_there(shm_run: ShmRun) -> None:
    version = shm_run.write(3)
    version.file.unlink()
    with pytest.raises(NotFoundError, match="no weights at"):
        stage_file(version.file, version.manifest.tensors)


def test_a_symlink_is_not_followed(shm_run: ShmRun, tmp_path: Path) -> None:
    version = shm_run.write(3)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(version.file.read_bytes())
    version.file.unlink()
    version.file.symlink_to(elsewhere)
    with pytest.raises(NotFoundError):
        stage_file(version.file, version.manifest.tensors)


def test_a_symlinked_folder_is_not_followed(shm_run: ShmRun, tmp_path: Path) -> None:
    version = shm_run.write(3)
    moved = tmp_path / "moved"
    moved.mkdir()
    (moved / version.file.name).write_bytes(version.file.read_bytes())
    shm_run.clean()
    version.file.parent.symlink_to(moved)
    try:
        with pytest.raises(NotFoundError):
            stage_file(version.file, version.manifest.tensors)
    finally:
        version.file.parent.unlink()


def test_a_pipe_neither_blocks_nor_passes(shm_run: ShmRun) -> None:
    version = shm_run.write(3)
    version.file.unlink()
    os.mkfifo(version.file)
    with pytest.raises(NotFoundError, match="not a plain file"):
        stage_file(version.file, version.manifest.tensors)


def test_one_flipped_bit_is_found_and_named(shm_run: ShmRun) -> None:
    version = shm_run.write(3)
    content = bytearray(version.file.read_bytes())
    content[-1] ^= 1
    version.file.write_bytes(content)
    with pytest.raises(InvalidInputError, match=r"norm\.weight: its sha256"):
        stage_file(version.file, version.manifest.tensors)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": [3, 4]}, r"embed\.weight is float32 \[4, 3\]"),
        ({"dtype": "bfloat16"}, r"embed\.weight is float32"),
        ({"sha256": "0" * 64}, "sha256"),
    ],
)
def test_the_manifest_says_something_else(
    shm_run: ShmRun, change: dict[str, object], message: str
) -> None:
    version = shm_run.write(3)
    tensors = dict(version.manifest.tensors)
    entry = tensors["embed.weight"].model_dump() | change
    tensors["embed.weight"] = TensorEntry.model_validate(entry)
    with pytest.raises(InvalidInputError, match=message):
        stage_file(version.file, tensors)


@pytest.mark.parametrize(("missing_in", "name"), [("file", "norm.weight"), ("manifest", "extra")])
def test_names_differ(shm_run: ShmRun, missing_in: str, name: str) -> None:
    arrays: Arrays = tensors_of(3)
    version = shm_run.write(3, arrays=arrays)
    if missing_in == "file":
        del arrays[name]
    else:
        arrays[name] = np.zeros(2, np.float32)
    shm_run.write(3, arrays=arrays)
    with pytest.raises(InvalidInputError, match=f"{name} is not in the {missing_in}"):
        stage_file(version.file, version.manifest.tensors)


def _with_offsets(version: ShmVersion, begin: int, end: int) -> bytes:
    content = version.file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["norm.weight"]["data_offsets"] = [begin, end]
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


@pytest.mark.parametrize("offsets", [(48, 1060), (-12, 0), (60, 48), (48, 56)])
def test_offsets_outside_the_file(shm_run: ShmRun, offsets: tuple[int, int]) -> None:
    version = shm_run.write(3)
    version.file.write_bytes(_with_offsets(version, *offsets))
    with pytest.raises(InvalidInputError, match="offsets are wrong"):
        stage_file(version.file, version.manifest.tensors)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"short",
        b"\xff" * 64,
        (4).to_bytes(8, "little") + b"null",
        (2).to_bytes(8, "little") + b"{]",
        (99).to_bytes(8, "little") + b"[" * 99,
        (20_000).to_bytes(8, "little") + b"[" * 20_000,
        (40).to_bytes(8, "little") + b'{"embed.weight":1,"norm.weight":{}}     ',
    ],
)
def test_what_is_no_safetensors_at_all(shm_run: ShmRun, content: bytes) -> None:
    version = shm_run.write(3)
    version.file.write_bytes(content)
    with pytest.raises(InvalidInputError):
        stage_file(version.file, version.manifest.tensors)


def test_a_refused_file_is_not_kept_open(shm_run: ShmRun) -> None:
    version = shm_run.write(3)
    version.file.write_bytes(b"not safetensors at all")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        with pytest.raises(InvalidInputError):
            stage_file(version.file, version.manifest.tensors)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1
