"""What a run leaves to be looked at: `plots/*.png`, and `report.html` of its held-out images."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from evaluation.of_a_run.plots import write_plots
from evaluation.reading.predictions import read_predictions
from evaluation.reading.problems import Problems
from evaluation.reading.references import read_dataset
from evaluation.report.page import write_report
from evaluation.result import EvaluationResult
from evaluation.scoring.compare import compare
from evaluation.scoring.evaluate import Options, evaluate
from services.settings import Settings


def write_run_results(settings: Settings) -> list[Path]:
    """Write `plots/*.png`, and `report.html` where the run has answers about held-out images."""
    written = write_plots(settings.run.files)
    if settings.run.files.heldout("after").exists():
        written.append(write_heldout_report(settings))
    return written


def write_heldout_report(settings: Settings) -> Path:
    """Write the report of `heldout-after.jsonl` and, where it is there, `heldout-before.jsonl`."""
    before, after = (heldout_result(settings, label) for label in ("before", "after"))
    assert after is not None
    result, picture = after
    return write_report(
        result,
        settings.run.folder,
        picture,
        compare(before[0], result) if before else None,
        num_images=result.num_images,
    )


def heldout_result(
    settings: Settings, label: str
) -> tuple[EvaluationResult, Callable[[str], bytes | None]] | None:
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
    named = replace(result, name=f"{settings.run.name}, {label} training")
    return named, references.image_bytes
