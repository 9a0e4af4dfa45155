"""Evaluations to draw: the real code's results for references that a seed has spoilt."""

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from evaluation.reading.predictions import read_predictions
from evaluation.reading.problems import Problems
from evaluation.reading.references import read_references
from evaluation.result import EvaluationResult
from evaluation.scoring.evaluate import Options, evaluate
from scene_data.dataset import Sample
from scene_data.templates import answer_text
from scene_graph.boxes import RELATIVE_1

SETTINGS = {
    "model": "assets/toy-start",
    "temperature": 0.0,
    "max_tokens": 1024,
    "constrain": False,
    "vocabulary": None,
    "statuses": {"ok": 12},
}


def evaluation_of(
    samples: Sequence[Sample], folder: Path, name: str, *, seed: int = 0, rate: float = 0.3
) -> EvaluationResult:
    """Evaluate the samples' own graphs, in which each part is wrong at `rate`."""
    rng = random.Random(seed)
    folder.mkdir(exist_ok=True)
    references, predictions = folder / "references.jsonl", folder / f"{name}.jsonl"
    _write(references, [_line(sample) for sample in samples])
    _write(predictions, [spoilt_line(sample, rng, rate) for sample in samples])
    predictions.with_suffix(".settings.json").write_text(json.dumps(SETTINGS))
    problems = Problems()
    read = read_references(str(references), problems)
    found = read_predictions(predictions, read, problems)
    return evaluate(found, read, problems, Options(split="toy held-out"))


def pictures_of(samples: Sequence[Sample]) -> Callable[[str], bytes | None]:
    """For the browser."""
    return {sample.image_id: sample.image_bytes for sample in samples}.get


def _write(file: Path, lines: Sequence[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def _line(sample: Sample) -> dict[str, Any]:
    return {
        "image_id": sample.image_id,
        "width": sample.width,
        "height": sample.height,
        "objects": [{"id": item.id, "bbox": item.bbox} for item in sample.graph.objects],
        "relationships": [
            {"subject": r.subject, "predicate": r.predicate, "object": r.object}
            for r in sample.graph.relationships
        ],
    }


def spoilt_line(sample: Sample, rng: random.Random, rate: float) -> dict[str, Any]:
    """A line of predictions: the sample's own graph, in which each part is wrong at `rate`."""
    line = _line(sample)
    line["text"] = answer_text(sample.graph, RELATIVE_1, width=1, height=1)
    line["num_tokens"] = len(line["text"]) // 3
    if rng.random() < rate / 3:
        failure = rng.choice(["invalid_json", "no_answer", "schema_violation"])
        text = line["text"][: rng.randrange(20, 200)]
        return {**line, "status": failure, "text": text, "objects": [], "relationships": []}
    for item in line["objects"]:
        wobble = 0.6 if rng.random() < rate else 0.05
        x1, y1, x2, y2 = item["bbox"]
        dx, dy = wobble * (x2 - x1) * rng.uniform(-1, 1), wobble * (y2 - y1) * rng.uniform(-1, 1)
        item["bbox"] = [x1 + dx, y1 + dy, x2 + dx, y2 + dy]
    predicates = [r["predicate"] for r in line["relationships"]] + ["near"]
    for relation in line["relationships"]:
        if rng.random() < rate:
            relation["predicate"] = rng.choice(predicates)
    line["relationships"] = [r for r in line["relationships"] if rng.random() > rate / 2]
    return line
