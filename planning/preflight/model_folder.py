"""Whether a folder holds a whole model that trainer and server can load: no torch, no weights read.

Every fault is found, not the first alone.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

from services.errors import SettingsError
from services.models.chat_template import LFS_POINTER, chat_template, read_json_object

_LFS = LFS_POINTER.encode()
_PROCESSORS = ("preprocessor_config.json", "processor_config.json")
_IMAGE_KEYS = ("image_processor_type", "image_processor", "feature_extractor_type", "image_mean")
"""Keys of an image processor's file."""
_TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt"))
_SAFETENSORS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_OTHER_WEIGHTS = (".gguf", ".pt", ".pth", ".safetensors")
_LENGTH_BYTES = 8
"""Bytes before a safetensors file's header: its length."""
_LARGEST_HEADER = 100_000_000
"""Bytes, as safetensors has it."""


def check_adapter(path: str) -> None:
    """Refuse a folder that holds an adapter and no model.

    Raises:
        SettingsError: With what to do.
    """
    folder = Path(path)
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise SettingsError(
            f"model.path: {path} is an adapter without its model: merge them with PEFT's "
            "merge_and_unload (docs/training.md), and name the merged folder"
        )


def folder_problems(path: str) -> list[str]:
    """All that is wrong in a model folder whose config.json is known to be one.

    Args:
        path: `model.path`, a folder here.
    """
    folder = Path(path)
    found: list[str] = []
    for problems in (_quantisation, _weights, _processor, _tokenizer, _template):
        try:
            found += list(problems(folder))
        except SettingsError as error:
            found.append(error.message)
    return found


def _quantisation(folder: Path) -> Iterator[str]:
    config = read_json_object(folder / "config.json")
    inner = config.get("text_config")
    parts = (config, inner if isinstance(inner, dict) else {})
    found = next((p["quantization_config"] for p in parts if p.get("quantization_config")), None)
    if found is not None:
        method = found.get("quant_method", "unknown") if isinstance(found, dict) else found
        yield (
            f"model.path: {folder} is quantised ({method}), and its weights cannot be trained: "
            "name the model that it was made from, in bfloat16 or float32"
        )


def _weights(folder: Path) -> Iterator[str]:
    names = _weight_files(folder)
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        yield (
            f"model.path: {folder} lacks {len(missing)} of the {len(names)} files that {_INDEX} "
            f"names ({', '.join(missing[:3])}): copy or download them"
        )
    for name in names:
        if name not in missing and (fault := _safetensors_fault(folder / name)):
            yield f"model.path: {folder / name} {fault}"


def _weight_files(folder: Path) -> list[str]:
    """Names of the safetensors that hold the weights.

    Raises:
        SettingsError: There are none, with what is there in their place.
    """
    if (folder / _SAFETENSORS).is_file():
        return [_SAFETENSORS]
    if (folder / _INDEX).is_file():
        index = read_json_object(folder / _INDEX)
        names = index.get("weight_map")
        if not isinstance(names, dict) or not names or "metadata" not in index:
            raise SettingsError(
                f"model.path: {folder / _INDEX} lacks its weight_map or its metadata: copy or "
                "download it again"
            )
        return sorted(set(map(str, names.values())))
    torch_files = sorted(file.name for file in folder.glob("pytorch_model*.bin"))
    others = sorted(f.name for f in folder.iterdir() if f.suffix in _OTHER_WEIGHTS)
    if torch_files:
        raise SettingsError(
            f"model.path: {folder} has its weights in {torch_files[0]}, and safetensors are "
            "wanted: AutoModelForImageTextToText.from_pretrained(folder).save_pretrained(other) "
            "of transformers writes them; copy the processor's and tokenizer's files beside them"
        )
    raise SettingsError(
        f"model.path: {folder} has no weights: {_SAFETENSORS}, or {_INDEX} with its files, is "
        f"wanted{', and there is ' + ', '.join(others[:3]) if others else ''}"
    )


def _safetensors_fault(file: Path) -> str | None:
    """What its header tells: cut short, or a pointer in place of the file."""
    try:
        with file.open("rb") as stream:
            head = stream.read(len(_LFS))
            if head == _LFS:
                return "is a Git LFS pointer, not the weights: fetch them with `git lfs pull`"
            length = int.from_bytes(head[:_LENGTH_BYTES], "little")
            stream.seek(_LENGTH_BYTES)
            header = stream.read(length) if length <= _LARGEST_HEADER else b""
            size = os.fstat(stream.fileno()).st_size
        tensors = json.loads(header)
        ends = [t["data_offsets"][1] for name, t in tensors.items() if name != "__metadata__"]
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        return "is no safetensors file: copy or download it again"
    wanted = _LENGTH_BYTES + length + max(ends, default=0)
    if size != wanted:
        return f"has {size} bytes, and its header names {wanted}: copy or download it again"
    return None


def _processor(folder: Path) -> Iterator[str]:
    files = [folder / name for name in _PROCESSORS if (folder / name).is_file()]
    trees = [read_json_object(file) for file in files]
    if not any(key in tree for tree in trees for key in _IMAGE_KEYS):
        yield _lacks(folder, "image processor", "preprocessor_config.json")


def _tokenizer(folder: Path) -> Iterator[str]:
    if not any(all((folder / name).is_file() for name in names) for names in _TOKENIZERS):
        yield _lacks(folder, "tokenizer", "tokenizer.json and tokenizer_config.json")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            read_json_object(folder / name)


def _template(folder: Path) -> Iterator[str]:
    if chat_template(str(folder)) is None:
        yield _lacks(folder, "chat template", "chat_template.jinja or chat_template.json")


def _lacks(folder: Path, what: str, files: str) -> str:
    return f"model.path: {folder} has no {what}: copy {files} of the model that it was made from"
