"""The files of an evaluation: `metrics.json`, `images.jsonl` and `ratios.npz`.

`ratios.npz` has what each image gave to each metric, so that two evaluations can be compared later
without their inputs: arrays of numbers and text, no pickle.
"""

import zipfile
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from scipy.sparse import csr_array

from evaluation.result import EvaluationResult, ImageResult
from evaluation.scoring.compare import Comparison
from scene_graph.metrics.ratio import RatioMetric
from services.errors import InvalidInputError

ELSEWHERE = ("metrics", "class_names", "images")
"""Fields of `EvaluationResult` that are not in `metrics.json`"""
_PARTS = ("data", "indices", "indptr", "shape")


def save_result(result: EvaluationResult, folder: Path) -> None:
    """Write all three; those of an earlier evaluation are replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = (msgspec.json.encode(image) + b"\n" for image in result.images)
    with (folder / "images.jsonl").open("wb") as file:
        file.writelines(lines)
    _save_ratios(result, folder / "ratios.npz")
    # Last: a folder with it is a finished evaluation.
    names = [field.name for field in fields(result) if field.name not in ELSEWHERE]
    content = _json({name: getattr(result, name) for name in names})
    (folder / "metrics.json").write_bytes(content)


def load_result(folder: Path) -> EvaluationResult:
    """What `save_result` wrote.

    Raises:
        InvalidInputError: The folder has no finished evaluation.
    """
    try:
        summary = msgspec.json.decode((folder / "metrics.json").read_bytes())
        with (folder / "images.jsonl").open("rb") as file:
            decoder = msgspec.json.Decoder(ImageResult)
            images = [decoder.decode(line) for line in file]
        metrics, class_names = _load_ratios(folder / "ratios.npz")
        result = msgspec.convert(summary, EvaluationResult)
    except FileNotFoundError as error:
        raise InvalidInputError(
            f"{folder} is no finished evaluation: it has no {Path(error.filename).name}; "
            "make one with `sgg-rl evaluate PREDICTIONS --reference DATA ... --output DIR`"
        ) from error
    except (OSError, ValueError, KeyError, msgspec.MsgspecError, zipfile.BadZipFile) as error:
        raise InvalidInputError(f"{folder} cannot be read: {error}; evaluate again") from error
    return replace(result, metrics=metrics, class_names=class_names, images=images)


def save_comparison(compared: Comparison, folder: Path) -> None:
    """Write `comparison.json`: `Comparison` with the names of both evaluations."""
    content = {field.name: getattr(compared, field.name) for field in fields(compared)}
    names = {"first": compared.first.name, "second": compared.second.name}
    (folder / "comparison.json").write_bytes(_json(content | names))


def _json(content: Any) -> bytes:
    return msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n"


def _save_ratios(result: EvaluationResult, file: Path) -> None:
    arrays: dict[str, Any] = {"class_names": np.array(result.class_names, dtype=np.str_)}
    for group, metrics in result.metrics.items():
        for name, metric in metrics.items():
            key = f"{group}/{name}"
            arrays |= _arrays(f"{key}/numerator", metric.numerator)
            arrays |= _arrays(f"{key}/denominator", metric.denominator)
            arrays[f"{key}/num_classes"] = np.array(metric.num_classes or 0)
    with file.open("wb") as stream:
        np.savez_compressed(stream, **arrays)


def _arrays(key: str, matrix: csr_array) -> dict[str, Any]:
    return {f"{key}/{part}": np.asarray(getattr(matrix, part)) for part in _PARTS}


def _load_ratios(file: Path) -> tuple[dict[str, dict[str, RatioMetric]], list[str]]:
    metrics: dict[str, dict[str, RatioMetric]] = {}
    with np.load(file, allow_pickle=False) as arrays:
        for key in arrays.files:
            if not key.endswith("/num_classes"):
                continue
            group, name, _ = key.split("/")
            metrics.setdefault(group, {})[name] = RatioMetric(
                numerator=_matrix(arrays, f"{group}/{name}/numerator"),
                denominator=_matrix(arrays, f"{group}/{name}/denominator"),
                num_classes=int(arrays[key]) or None,
            )
        return metrics, arrays["class_names"].tolist()


def _matrix(arrays: Any, key: str) -> csr_array:
    data, indices, indptr, shape = (arrays[f"{key}/{part}"] for part in _PARTS)
    return csr_array((data, indices, indptr), shape=tuple(shape))
