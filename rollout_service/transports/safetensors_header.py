"""A safetensors file's header, from anybody: names, shapes, types and places of its tensors.

Stricter than the format (https://huggingface.co/docs/safetensors) where readers differ, so that
what is verified here is what vLLM loads: no name comes twice, numbers are plain integers, and
tensors follow one another without gap or overlap up to the end of the file.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from services.errors import InvalidInputError
from services.schemas.weights import MAX_DIMENSION, MAX_RANK

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000
"""The format's own limit."""
_MAX_TENSORS = 200_000
_MAX_COMMAS = _MAX_TENSORS * (MAX_RANK + 4)
_DTYPES = {"F32": ("float32", 4), "BF16": ("bfloat16", 2), "F16": ("float16", 2)}
_KEYS = frozenset({"dtype", "shape", "data_offsets"})
_MAX_SHOWN = 200
"""Characters of a tensor's name in a message."""


@dataclass(frozen=True, slots=True)
class TensorSpan:
    """A tensor as a file's header describes it; `begin` and `end` count from the header's end."""

    dtype: str
    shape: list[int]
    begin: int
    end: int


def header_length(prefix: bytes | memoryview) -> int:
    """Bytes of the JSON header, of the file's first eight bytes.

    Raises:
        InvalidInputError: It is over `MAX_HEADER_BYTES`.
    """
    length = int.from_bytes(prefix, "little")
    if len(prefix) < LENGTH_BYTES or length > MAX_HEADER_BYTES:
        raise _unusable(f"its header is over {MAX_HEADER_BYTES} bytes")
    return length


def parse_header(text: bytes, num_bytes: int | None = None) -> dict[str, TensorSpan]:
    """Tensors by name, in the order of their bytes.

    Args:
        text: The JSON header.
        num_bytes: Of the tensors that follow it; None where they are not there yet.

    Raises:
        InvalidInputError: It is no header, or its tensors do not fill the file; the message names
            the tensor.
    """
    header = _decode(text)
    _check_metadata(header.pop("__metadata__", {}))
    found = {name: _span(name, entry) for name, entry in header.items()}
    spans = dict(sorted(found.items(), key=lambda item: (item[1].begin, item[1].end)))
    end = 0
    for name, span in spans.items():
        if span.begin != end:
            raise InvalidInputError(f"{shown(name)}: the file's offsets are wrong")
        end = span.end
        if num_bytes is not None and end > num_bytes:
            raise InvalidInputError(
                f"{shown(name)}: the file is cut short or its offsets are wrong"
            )
    if num_bytes is not None and end < num_bytes:
        raise InvalidInputError("the file of weights goes on after its last tensor")
    return spans


def shown(name: str) -> str:
    """A tensor's name as it may stand in a message."""
    return name if len(name) <= _MAX_SHOWN else f"{name[:_MAX_SHOWN]}..."


def _decode(text: bytes) -> dict[str, Any]:
    """The JSON object, without building what no header needs."""
    if not text.startswith(b"{"):
        raise _unusable("no JSON object")
    # An entry has one object and two lists. Wide JSON would take many times its size in memory.
    num_objects, num_lists = text.count(b"{") - 2, text.count(b"[")
    if max(num_objects, num_lists / 2) > _MAX_TENSORS or text.count(b",") > _MAX_COMMAS:
        raise _unusable(f"it has more than {_MAX_TENSORS} tensors")
    try:
        header: dict[str, Any] = json.loads(
            text.decode(),  # UTF-8, and no other encoding that json would guess
            object_pairs_hook=_without_repeats,
            parse_float=_refuse_number,
            parse_constant=_refuse_number,
        )
    except (ValueError, RecursionError) as error:
        raise _unusable("no JSON header") from error
    return header


def _check_metadata(metadata: Any) -> None:
    is_text = isinstance(metadata, Mapping) and all(isinstance(v, str) for v in metadata.values())
    if not is_text:
        raise _unusable("its __metadata__ is not text by name")


def _span(name: str, entry: Any) -> TensorSpan:
    """Sizes are checked before they are multiplied: a product of any numbers has no bound."""
    if not isinstance(entry, Mapping) or entry.keys() != _KEYS:
        raise InvalidInputError(f"{shown(name)}: the file's entry is not usable")
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(code, str) or code not in _DTYPES:
        raise InvalidInputError(
            f"{shown(name)}: the file's dtype is not one of {', '.join(_DTYPES)}"
        )
    if not _are_sizes(shape) or len(shape) > MAX_RANK:
        raise InvalidInputError(
            f"{shown(name)}: the file's shape is not at most {MAX_RANK} integers from 0 to "
            f"{MAX_DIMENSION}"
        )
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise InvalidInputError(f"{shown(name)}: the file's offsets are wrong")
    dtype, size = _DTYPES[code]
    begin, end = offsets
    if end - begin != size * math.prod(shape):
        raise InvalidInputError(f"{shown(name)}: the file is cut short or its offsets are wrong")
    return TensorSpan(dtype, shape, begin, end)


def _are_sizes(found: Any) -> bool:
    """A list of integers in range; True and False are none, though Python takes them for some."""
    return isinstance(found, list) and all(
        type(n) is int and 0 <= n <= MAX_DIMENSION for n in found
    )


def _without_repeats(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Which of two entries counted would be the reader's choice: vLLM's may be another."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is repeated")
    return found


def _refuse_number(text: str) -> NoReturn:
    raise ValueError(f"{text[:20]} is no integer")


def _unusable(why: str) -> InvalidInputError:
    return InvalidInputError(f"the file of weights is not safetensors: {why}")
