"""A version's file: opened where it must be, and compared byte by byte."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from services.errors import InvalidInputError, NotFoundError
from services.schemas.weights import DigestAlgorithm, TensorEntry
from tests.shm_versions import HASHES, Arrays, ShmRun, ShmVersion, tensors_of
from weight_sync.file_format import header_length, parse_header
from weight_sync.transports.files import stage_file


def test_a_good_file_is_staged_and_readable_even_when_its_name_is_gone(shm_run: ShmRun) -> None:
    version = shm_run.write(3)
    content = version.file.read_bytes()
    staged = stage_file(version.file, version.manifest)
    version.file.unlink()
    assert staged.path.read_bytes() == content
    staged.close()
    staged.close()
    assert not staged.path.exists()


def test_nothing_there(shm_run: ShmRun) -> None:
    version = shm_run.write(3)
    version.file.unlink()
    with pytest.raises(NotFoundError, match="no weights at"):
        stage_file(version.file, version.manifest)


def test_a_symlink_is_not_followed(shm_run: ShmRun, tmp_path: Path) -> None:
    version = shm_run.write(3)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(version.file.read_bytes())
    version.file.unlink()
    version.file.symlink_to(elsewhere)
    with pytest.raises(NotFoundError):
        stage_file(version.file, version.manifest)


def test_a_symlinked_folder_is_not_followed(shm_run: ShmRun, tmp_path: Path) -> None:
    version = shm_run.write(3)
    moved = tmp_path / "moved"
    moved.mkdir()
    (moved / version.file.name).write_bytes(version.file.read_bytes())
    shm_run.clean()
    version.file.parent.symlink_to(moved)
    try:
        with pytest.raises(NotFoundError):
            stage_file(version.file, version.manifest)
    finally:
        version.file.parent.unlink()


def test_a_pipe_neither_blocks_nor_passes(shm_run: ShmRun) -> None:
    version = shm_run.write(3)
    version.file.unlink()
    os.mkfifo(version.file)
    with pytest.raises(NotFoundError, match="not a plain file"):
        stage_file(version.file, version.manifest)


@pytest.mark.parametrize("algorithm", HASHES)
def test_one_flipped_bit_is_found_and_named(shm_run: ShmRun, algorithm: DigestAlgorithm) -> None:
    version = shm_run.write(3, algorithm=algorithm)
    stage_file(version.file, version.manifest).close()
    content = bytearray(version.file.read_bytes())
    content[-1] ^= 1
    version.file.write_bytes(content)
    with pytest.raises(InvalidInputError, match=rf"norm\.weight: its {algorithm}"):
        stage_file(version.file, version.manifest)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": [3, 4]}, r"embed\.weight is float32 \[4, 3\]"),
        ({"dtype": "bfloat16"}, r"embed\.weight is float32"),
        ({"digest": "0" * 64}, "blake3"),
    ],
)
def test_the_manifest_says_something_else(
    shm_run: ShmRun, change: dict[str, object], message: str
) -> None:
    version = shm_run.write(3)
    tensors = dict(version.manifest.tensors)
    entry = tensors["embed.weight"].model_dump() | change
    tensors["embed.weight"] = TensorEntry.model_validate(entry)
    manifest = version.manifest.model_copy(update={"tensors": tensors})
    with pytest.raises(InvalidInputError, match=message):
        stage_file(version.file, manifest)


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
        stage_file(version.file, version.manifest)


def _with_entry(version: ShmVersion, key: str, value: str) -> bytes:
    """The version's file with another entry, in raw JSON, of `norm.weight`: [3], at 48 to 60."""
    content = version.file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["norm.weight"][key] = "HERE"
    text = json.dumps(header).replace('"HERE"', value).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def _with_offsets(version: ShmVersion, begin: int, end: int) -> bytes:
    return _with_entry(version, "data_offsets", f"[{begin}, {end}]")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("shape", "[3.0]"),
        ("shape", "[3e0]"),
        ("shape", '["3"]'),
        ("shape", "[Infinity]"),
        ("shape", "[NaN]"),
        ("shape", "[3, true]"),
        ("shape", "3"),
        ("shape", "null"),
        ("shape", "[-3]"),
        ("shape", f"[{'9' * 5000}]"),
        ("shape", f"[0, {2**70}]"),
        ("shape", f"[{', '.join(['3'] + ['1'] * 8)}]"),
        ("shape", f"[{', '.join([str(2**48)] * 8)}]"),
        ("data_offsets", "[48.0, 60.0]"),
        ("data_offsets", '["48", "60"]'),
        ("data_offsets", "[48, Infinity]"),
        ("data_offsets", "[48]"),
        ("data_offsets", "[48, 60, 60]"),
        ("data_offsets", f"[48, {2**64 + 60}]"),
        ("dtype", '["F32"]'),
        ("dtype", '"F64"'),
        ("dtype", "32"),
        ("extra", "1"),
    ],
)
def test_entries_that_readers_could_take_in_different_ways(
    shm_run: ShmRun, key: str, value: str
) -> None:
    version = shm_run.write(3)
    version.file.write_bytes(_with_entry(version, key, value))
    with pytest.raises(InvalidInputError, match=r"norm\.weight|no JSON header"):
        stage_file(version.file, version.manifest)


def _header(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


ENTRY = '{"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f'{{"a": {ENTRY}, "b": {ENTRY}}}', "b: the file's offsets are wrong"),
        (f'{{"a": {ENTRY.replace("0, 4", "4, 8")}}}', "a: the file's offsets are wrong"),
        (f'{{"a": {ENTRY}, "a": {ENTRY}}}', "no JSON header"),
        (f'{{"a": {ENTRY}}}', "goes on after its last tensor"),
        (f' {{"a": {ENTRY}}}', "no JSON object"),
        ('{"__metadata__": {"step": 1}}', "__metadata__"),
        ('{"__metadata__": []}', "__metadata__"),
        ('{"a": ' + "[" * 300_000 + "]" * 300_000 + "}", "no JSON header"),
        ('{"a": [' + "[]," * 500_000 + "[]]}", "more than 200000 tensors"),
        ('{"a": [' + "0," * 3_000_000 + "0]}", "more than 200000 tensors"),
        ('{"' + "a" * 1000 + '": 1}', "^a{200}[.]{3}: the file's entry"),
        ('{"\ud83d": 1}', "no JSON header"),
    ],
)
def test_headers_that_do_not_fill_the_file_or_are_no_header(text: str, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        parse_header(_header(text), 8)


def test_the_header_is_as_long_as_the_format_allows() -> None:
    assert header_length((100_000_000).to_bytes(8, "little")) == 100_000_000
    with pytest.raises(InvalidInputError, match="its header is over 100000000 bytes"):
        header_length((100_000_001).to_bytes(8, "little"))


@given(st.lists(st.lists(st.integers(0, 3), max_size=8), max_size=5))
def test_what_safetensors_writes_is_taken(shapes: list[list[int]]) -> None:
    content = save({f"t{i}": np.zeros(shape, np.float32) for i, shape in enumerate(shapes)})
    start = 8 + header_length(content[:8])
    found = parse_header(content[8:start], len(content) - start)
    assert {name: span.shape for name, span in found.items()} == {
        f"t{i}": shape for i, shape in enumerate(shapes)
    }


@pytest.mark.parametrize("offsets", [(48, 1060), (-12, 0), (60, 48), (48, 56)])
def test_offsets_outside_the_file(shm_run: ShmRun, offsets: tuple[int, int]) -> None:
    version = shm_run.write(3)
    version.file.write_bytes(_with_offsets(version, *offsets))
    with pytest.raises(InvalidInputError, match="offsets are wrong"):
        stage_file(version.file, version.manifest)


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
        stage_file(version.file, version.manifest)


def test_a_refused_file_is_not_kept_open(shm_run: ShmRun) -> None:
    version = shm_run.write(3)
    version.file.write_bytes(b"not safetensors at all")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        with pytest.raises(InvalidInputError):
            stage_file(version.file, version.manifest)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1
