"""Predictions, from any of the layouts in `docs/evaluation.md`.

What is wrong in them goes to `Problems`; the first of several predictions for an image counts. Only
a file that cannot be used at all is an error.
"""

import codecs
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

import msgspec

from evaluation.reading.graphs import parsed_graph, written_graph
from evaluation.reading.image_ids import KnownIds
from evaluation.reading.jsonl import WRONG, decoded_lines, first_problem, what_broke
from evaluation.reading.lines import GraphLine, ResponseFile, TextLine, decode_graph_line
from evaluation.reading.problems import Place, Problems
from evaluation.reading.references import References, Size
from scene_data.reading.rows import RowError, image_id_text
from scene_graph.boxes import BoxSpace
from scene_graph.cleaning import Task
from scene_graph.metrics.table import ImageGraph
from scene_graph.notations.answer import NotationName
from scene_graph.notations.notation import NOTATIONS
from scene_graph.parsing import parse_completion
from services.errors import InvalidInputError


@dataclass(slots=True, kw_only=True)
class PredictedImage:
    """What was found in an image."""

    graph: ImageGraph
    """Empty unless `status` is `ok`"""
    status: str
    text: str | None = None
    num_tokens: int | None = None
    unconstrained_status: str | None = None


@dataclass(slots=True, kw_only=True)
class Predictions:
    """By image id."""

    name: str
    """For headings"""
    file: Path
    images: dict[str, PredictedImage]
    settings: dict[str, Any]
    """What `sgg-rl infer` wrote beside them; else empty"""


_Line = GraphLine | TextLine
_TEXT = msgspec.json.Decoder(TextLine)
_RESPONSE = msgspec.json.Decoder(ResponseFile)


def predicted_task(path: Path) -> Task:
    """What the settings beside predictions say; `sgg` where they say nothing.

    Args:
        path: As for `read_predictions`.

    Raises:
        InvalidInputError: They say something else than a task.
    """
    file = _settings_file(_predictions_file(path))
    task: Task = _settings(file, Problems()).get("task", "sgg")
    if task not in get_args(Task):
        raise InvalidInputError(f"{file} has task = {task!r}: it is one of {get_args(Task)}")
    return task


def _predicted_notation(path: Path) -> NotationName:
    file = _settings_file(path)
    notation: NotationName = _settings(file, Problems()).get("notation", "json")
    if notation not in NOTATIONS:
        raise InvalidInputError(f"{file} has notation = {notation!r}: it is one of {[*NOTATIONS]}")
    return notation


def read_predictions(
    path: Path, references: References, problems: Problems, task: Task = "sgg"
) -> Predictions:
    """Read the predictions of referenced images.

    Args:
        path: A JSONL file, a folder with `predictions.jsonl`, or a folder of R1-SGG's answers.
        references: Images that are not among these are ignored and counted.
        problems: Grows by what is wrong, missing predictions among it.
        task: What text is read as, and whether objects must have boxes.

    Raises:
        InvalidInputError: There is no such file, no answer in the folder, or no image of it is in
            the references; or the settings beside it name no notation.
    """
    path = _predictions_file(path)
    notation = _predicted_notation(path)
    images: dict[str, PredictedImage] = {}
    known = KnownIds(references.images)
    for place, line in _lines(path, problems, task):
        image_id = str(place.image_id)
        reference = references.images.get(image_id)
        if reference is None:
            place.add("unknown_image", f"ignored: {known.hint(image_id)}")
        elif image_id in images:
            place.add("duplicate_image", "ignored: the first prediction for an image counts")
        elif prediction := _prediction(line, reference.size, place, task, notation):
            images[image_id] = prediction
    if not images:
        raise InvalidInputError(
            f"{path} has no prediction for any image of {references.name}{first_problem(problems)}"
        )
    for image_id in references.images:
        if image_id not in images:
            place = Place(problems, str(path), None, image_id)
            place.add("no_prediction", "counts as an empty graph")
    return Predictions(
        name=_heading(path),
        file=path,
        images=images,
        settings=_settings(_settings_file(path), problems),
    )


def _predictions_file(path: Path) -> Path:
    file = path / "predictions.jsonl"
    return file if file.is_file() else path


def _settings_file(predictions: Path) -> Path:
    return predictions.with_suffix(".settings.json")


def _lines(path: Path, problems: Problems, task: Task) -> Iterator[tuple[Place, _Line]]:
    if path.is_dir():
        return _files(path, problems)
    return decoded_lines(path, problems, partial(_decoded, task=task))


def _decoded(text: bytes, task: Task) -> _Line:
    try:
        return decode_graph_line(text, task)
    except msgspec.ValidationError:
        if b'"text"' not in text or b'"objects"' in text:
            raise
    return _TEXT.decode(text)


def _files(folder: Path, problems: Problems) -> Iterator[tuple[Place, TextLine]]:
    """R1-SGG's answers: `<image_id>.json` each."""
    if not (files := sorted(folder.glob("*.json"))):
        raise InvalidInputError(
            f"{folder} has neither predictions.jsonl, which `sgg-rl infer` writes, nor .json "
            "answers of R1-SGG (docs/evaluation.md, Formats)"
        )
    for file in files:
        try:
            found = _RESPONSE.decode(file.read_bytes().removeprefix(codecs.BOM_UTF8))
            image_id = image_id_text(found.image_id)
        except (*WRONG, RowError) as error:
            Place(problems, str(file)).add("broken_file", f"left out: {what_broke(error)}")
        except OSError as error:
            Place(problems, str(file)).add("broken_file", f"left out: {error.strerror}")
        else:
            space = "pixels:{:.0f}x{:.0f}".format(*found.box_scale)
            line = TextLine(image_id=found.image_id, text=found.response, box_space=space)
            yield Place(problems, str(file), None, image_id), line


def _of_graph(line: GraphLine, size: Size, place: Place) -> PredictedImage:
    graph = ImageGraph(size=size)
    if line.status == "ok":
        graph = written_graph(line.objects, line.relationships, size, place)
        if line.size != size:
            detail = "{}x{}, but the reference is {}x{}".format(*line.size, *size)
            place.add("size_differs", detail + ": boxes are taken as pixels of the reference")
    return PredictedImage(
        graph=graph,
        status=_status(line.status, truncated=line.truncated),
        text=line.text,
        num_tokens=line.num_tokens,
        unconstrained_status=line.unconstrained_status,
    )


def _prediction(
    line: _Line, size: Size, place: Place, task: Task, notation: NotationName
) -> PredictedImage | None:
    """None of a text whose boxes are in no known space."""
    if isinstance(line, GraphLine):
        return _of_graph(line, size, place)
    try:
        space = BoxSpace.parse(line.box_space)
    except ValueError as error:
        place.add("broken_line", f"left out: {error}")
        return None
    parsed = parse_completion(line.text, space, task=task, notation=notation)
    return PredictedImage(
        graph=parsed_graph(parsed, size, place),
        status=_status(parsed.status, truncated=parsed.truncated),
        text=line.text,
        num_tokens=line.num_tokens,
    )


def _status(status: str, *, truncated: bool) -> str:
    """An answer that was cut is another failure than one that is no JSON."""
    return "truncated" if status == "invalid_json" and truncated else status


def _heading(path: Path) -> str:
    """The folder where it holds one inference, as `runs/mine/inference`; else the file."""
    if path.name != "predictions.jsonl":
        return path.stem
    return "/".join(path.absolute().parent.parts[-2:])


def _settings(file: Path, problems: Problems) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        settings = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        Place(problems, str(file)).add("broken_settings", f"ignored: {error}")
        return {}
    return settings if isinstance(settings, dict) else {}
