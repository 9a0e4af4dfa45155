"""The answers about held-out images that a run keeps, judged as `sgg-rl evaluate` judges a file."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from evaluation.of_a_run.heldout import Label
from evaluation.reading.predictions import read_predictions
from evaluation.reading.problems import Problems
from evaluation.reading.references import read_dataset
from evaluation.result import EvaluationResult
from evaluation.scoring.evaluate import Options, evaluate
from services.settings import Settings

Judged = tuple[EvaluationResult, Callable[[str], bytes | None]]
"""The numbers of some answers, and the picture of each image by its id"""


def kept_results(settings: Settings) -> tuple[Judged | None, Judged | None]:
    """Those from before training, and the last ones; None where a run has no such answers."""
    last = heldout_result(settings, "now") or heldout_result(settings, "after")
    return heldout_result(settings, "before"), last


def heldout_result(settings: Settings, label: Label) -> Judged | None:
    """The numbers that `sgg-rl evaluate` gives for the same answers and images, and the pictures.

    None where the run has no such answers.
    """
    file = settings.run.files.heldout(label)
    if not file.exists():
        return None
    problems = Problems()
    name = settings.data.heldout or settings.data.train
    references = read_dataset(name, problems, limit=settings.evaluation.num_images)
    task = settings.data.task
    predictions = read_predictions(file, references, problems, task)
    options = Options(split=Path(name).stem, task=task)
    result = evaluate(predictions, references, problems, options)
    version = predictions.settings.get("policy_version", "the last")
    when = f"version {version}" if label == "now" else f"{label} training"
    return replace(result, name=f"{settings.run.name}, {when}"), references.image_bytes
