"""Predictions beside the annotated graphs as a dataset that FiftyOne opens, without FiftyOne.

The folder is a `FiftyOneDataset`: `metadata.json`, `samples.json` and the pictures in `data/`. Its
metadata has no `version`, so that FiftyOne of any release infers the fields from the samples.
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.reading.predictions import PredictedImage, predicted_task, read_predictions
from evaluation.reading.problems import Problems
from evaluation.reading.references import References, read_dataset, read_references
from scene_graph.cleaning import Task
from scene_graph.metrics.table import ImageGraph
from services.errors import InvalidInputError, SettingsError, TooLargeError
from services.images import decode_image, image_header
from services.run_folder import RunFolder
from services.settings.load import load_settings

GROUND_TRUTH = "ground_truth"
_SUFFIXES = {
    b"\x89PNG": ".png",
    b"\xff\xd8": ".jpg",
    b"RIFF": ".webp",
    b"GIF8": ".gif",
    b"BM": ".bmp",
}
"""By the first bytes of a file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What was written, and what was not."""

    folder: Path
    num_samples: int
    num_without_picture: int
    """Images that are left out, since FiftyOne shows pictures."""
    fields: tuple[str, ...]
    """A sample's graphs, by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    references: References
    predictions: Mapping[str, Mapping[str, PredictedImage]]
    """By the name of their field, then by image id."""
    task: Task


def export_fiftyone(source: Path, output: Path, *, reference: str | None = None) -> Exported:
    """Write the dataset.

    Args:
        source: A run's folder, whose held-out answers are taken, or predictions as
            `read_predictions` takes them.
        output: A folder that is not there, or empty.
        reference: The annotated graphs; else the run's held-out dataset, or the dataset that the
            settings beside the predictions name.

    Raises:
        InvalidInputError: Something cannot be read, no picture is there, or the task is `cls`,
            whose graphs have no boxes.
        SettingsError: The folder has something in it, or nothing says which dataset it is.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise SettingsError(f"{output} is there already: name another folder with --output")
    found = _read(source, reference)
    if found.task == "cls":
        raise InvalidInputError("graphs of the task cls have no boxes, which FiftyOne would show")
    draft = output.with_name(f".{output.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    (draft / "data").mkdir(parents=True)
    try:
        samples = [*_samples(found, draft / "data")]
        if not samples:
            raise InvalidInputError(f"no picture of {found.references.name} can be read")
        _write(draft / "samples.json", {"samples": samples})
        info = {"source": str(source), "reference": found.references.name, "task": found.task}
        _write(draft / "metadata.json", {"name": output.name, "media_type": "image", "info": info})
        if output.exists():
            output.rmdir()
        draft.rename(output)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return Exported(
        folder=output,
        num_samples=len(samples),
        num_without_picture=len(found.references.images) - len(samples),
        fields=(GROUND_TRUTH, *found.predictions),
    )


def _read(source: Path, reference: str | None) -> _Source:
    run = RunFolder(source)
    if not run.config.is_file():
        task, problems = predicted_task(source), Problems()
        references = read_references(reference or _dataset_of(source), problems, task)
        images = read_predictions(source, references, problems, task).images
        return _Source(references=references, predictions={"predictions": images}, task=task)
    settings = load_settings(run.config)
    task, name = settings.data.task, reference or settings.data.heldout or settings.data.train
    references = read_dataset(name, Problems(), limit=settings.evaluation.num_images)
    found = {
        label: read_predictions(run.heldout(label), references, Problems(), task).images
        for label in ("before", "after")
        if run.heldout(label).is_file()
    }
    if not found:
        raise InvalidInputError(
            f"{source} has no held-out answers (heldout-after.jsonl): evaluate the run, or name "
            "predictions of `sgg-rl infer`"
        )
    return _Source(references=references, predictions=found, task=task)


def _dataset_of(predictions: Path) -> str:
    folder = predictions if predictions.is_dir() else predictions.parent
    try:
        return str(json.loads((folder / "predictions.settings.json").read_text())["dataset"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SettingsError(
            f"nothing beside {predictions} names the dataset: give it with --reference"
        ) from error


def _samples(source: _Source, folder: Path) -> Iterator[dict[str, Any]]:
    for number, (image_id, reference) in enumerate(source.references.images.items()):
        data = source.references.image_bytes(image_id)
        file = data and _write_picture(data, folder / f"{number:06d}")
        if not file:
            continue
        sample = {
            "filepath": f"data/{file.name}",
            "tags": [],
            "_media_type": "image",
            "image_id": image_id,
            **_graph(GROUND_TRUTH, reference.graph),
        }
        for field, images in source.predictions.items():
            predicted = images.get(image_id)
            sample[f"{field}_status"] = predicted.status if predicted else "no_prediction"
            sample |= _graph(field, predicted.graph if predicted else ImageGraph())
        yield sample


def _write_picture(data: bytes, stem: Path) -> Path | None:
    """The picture as it is, or upright where EXIF turns it; None where it is none."""
    try:
        header = image_header(data)
        suffix = next((s for start, s in _SUFFIXES.items() if data.startswith(start)), None)
        if header.orientation == 1 and suffix:
            file = stem.with_suffix(suffix)
            file.write_bytes(data)
        else:
            file = stem.with_suffix(".png")
            decode_image(data).save(file)
    except (InvalidInputError, TooLargeError):
        return None
    return file


def _graph(field: str, graph: ImageGraph) -> dict[str, Any]:
    """Detections, each with the relations that it is the subject of; and all relations as text."""
    ids = [f"{name}.{number}" for number, name in enumerate(graph.names, start=1)]
    triplets = list(zip(graph.subjects, graph.predicates, graph.objects, strict=True))
    width, height = graph.size
    detections = [
        {
            "_cls": "Detection",
            "label": name,
            "bounding_box": [x1 / width, y1 / height, (x2 - x1) / width, (y2 - y1) / height],
            "tags": [],
            "attributes": {},
            "object_id": ids[number],
            "relations": [f"{p} {ids[o]}" for s, p, o in triplets if s == number],
        }
        for number, (name, (x1, y1, x2, y2)) in enumerate(
            zip(graph.names, _boxes(graph.boxes), strict=True)
        )
    ]
    fields: dict[str, Any] = {field: {"_cls": "Detections", "detections": detections}}
    if triplets:  # of an empty list FiftyOne does not learn what would be in it
        fields[f"{field}_relations"] = [f"{ids[s]} {p} {ids[o]}" for s, p, o in triplets]
    return fields


def _boxes(flat: Sequence[float]) -> Iterator[Sequence[float]]:
    return (flat[at : at + 4] for at in range(0, len(flat), 4))


def _write(file: Path, document: dict[str, Any]) -> None:
    file.write_text(json.dumps(document, allow_nan=False, indent=1) + "\n")
