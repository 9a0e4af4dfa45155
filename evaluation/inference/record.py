"""`predictions.settings.json`: how the predictions beside it were made."""

import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from evaluation.inference.progress import Progress
from scene_data.templates import instruction_digest
from services.errors import ConflictError
from services.schemas.weights import PolicyInfo
from services.settings import Settings

FILE = "predictions.settings.json"
_OF_EARLIER = {"notation": "json", "scores": False}
"""What records of earlier releases do not say"""
_MAY_CHANGE = frozenset({"num_images", "software_version", "result"})
"""Between two starts that write into one folder."""


class InferenceRecord:
    """The file of a folder. Its fields are explained in `docs/inference.md`."""

    def __init__(self, folder: Path, fields: Mapping[str, Any]) -> None:
        self._file = folder / FILE
        self._fields = dict(fields)

    def check(self) -> None:
        """Hold it against what is there.

        Raises:
            ConflictError: That was made in another way.
        """
        if self._file.exists():
            self._compare(json.loads(self._file.read_text()))

    def begin(self) -> None:
        """Write it, before the first prediction.

        Raises:
            ConflictError: As `check`.
        """
        self.check()
        self._write()

    def end(self, progress: Progress) -> None:
        """Add what came of it."""
        self._write(result=result_fields(progress))

    def _compare(self, earlier: Mapping[str, Any]) -> None:
        changed = [
            f"  {name} = {json.dumps(earlier.get(name))}, and now it is {json.dumps(now)}"
            for name, now in self._fields.items()
            if name not in _MAY_CHANGE and earlier.get(name, _OF_EARLIER.get(name)) != now
        ]
        if changed:
            raise ConflictError(
                f"{self._file} is of predictions that were made otherwise; ask in the same way "
                "again, or give another --output:\n" + "\n".join(changed)
            )

    def _write(self, **more: Any) -> None:
        draft = self._file.with_suffix(".draft")
        draft.write_text(json.dumps(self._fields | more, indent=2) + "\n")
        draft.replace(self._file)


def kept_settings(folder: Path) -> dict[str, Any]:
    """What a folder's file says."""
    fields: dict[str, Any] = json.loads((folder / FILE).read_text())
    return fields


def record_fields(
    settings: Settings, policy: PolicyInfo, dataset: str, num_rows: int | None, num_images: int
) -> dict[str, Any]:
    """What makes predictions what they are.

    Args:
        settings: That prompts and sampling are made from.
        policy: That the servers serve.
        dataset: Its name, as given.
        num_rows: Usable rows of it; None where another start may have others.
        num_images: How many of them are asked about.
    """
    return {
        "model": policy.model,
        "model_checksum": policy.checksum or folder_checksum(Path(policy.model)),
        "policy_version": policy.policy_version,
        "incarnation": policy.incarnation,
        "dtype": policy.dtype,
        "dataset": dataset,
        "num_rows": num_rows,
        "num_images": num_images,
        **asked_fields(settings),
        "software_version": version("sgg-rl"),
    }


def asked_fields(settings: Settings) -> dict[str, Any]:
    """How a model is asked about an image: the question, its boxes and pixels, the sampling."""
    model, data, evaluation = settings.model, settings.data, settings.evaluation
    return {
        "task": data.task,
        "notation": data.notation,
        "template": data.template,
        "vocabulary": data.vocabulary,
        "instruction_sha256": instruction_digest(data.template, data.vocabulary),
        "thinking": data.thinking,
        "box_space": model.box_space,
        "min_pixels": model.min_pixels,
        "max_pixels": model.max_pixels,
        "temperature": evaluation.temperature,
        "top_p": evaluation.top_p,
        "top_k": evaluation.top_k,
        "best_of": evaluation.best_of if evaluation.best_of > 1 else None,
        "consensus": evaluation.consensus if evaluation.consensus > 1 else None,
        "scores": evaluation.scores,
        "max_tokens": evaluation.max_tokens,
        "seed": settings.run.seed if evaluation.temperature else None,
        "constrain": evaluation.constrain,
    }


def result_fields(progress: Progress) -> dict[str, Any]:
    """What came of an inference; rates are those of its last start."""
    return {
        "num_images": progress.done,
        "statuses": dict(sorted(progress.statuses.items())),
        "unconstrained_statuses": dict(sorted(progress.unconstrained.items())),
        "policy_versions": sorted(progress.versions),
        "seconds": round(progress.elapsed_s, 3),
        "images_per_s": round(progress.images_per_s, 3),
        "tokens_per_s": round(progress.tokens_per_s, 1),
    }


def folder_checksum(folder: Path) -> str | None:
    """SHA-256 over the names and contents of a model's weights; None where they are not here."""
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    states = [(file, file.stat()) for file in files]
    return _checksum(tuple((file, state.st_size, state.st_mtime_ns) for file, state in states))


@lru_cache(maxsize=1)  # it is asked for before a server is started and after: seconds for 15 GB
def _checksum(files: tuple[tuple[Path, int, int], ...]) -> str | None:
    whole = hashlib.sha256()
    for file, *_ in files:
        with file.open("rb") as stream:
            whole.update(file.name.encode() + hashlib.file_digest(stream, "sha256").digest())
    return whole.hexdigest() if files else None
