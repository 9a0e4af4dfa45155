"""What a run leaves to be looked at: `plots/*.png`, and `report.html` of its held-out images.

Example: `python -m evaluation.of_a_run.report runs/demo` draws them, as `ResultsProcess` does.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from evaluation.of_a_run.heldout import Label
from evaluation.of_a_run.plots import write_plots
from evaluation.reading.predictions import read_predictions
from evaluation.reading.problems import Problems
from evaluation.reading.references import read_dataset
from evaluation.report.page import write_report
from evaluation.result import EvaluationResult
from evaluation.scoring.compare import compare
from evaluation.scoring.evaluate import Options, evaluate
from services.errors import SggError
from services.run_folder import RunFolder
from services.settings import Settings, load_settings


def write_run_results(settings: Settings) -> list[Path]:
    """Write `plots/*.png`, and `report.html` where the run has answers about held-out images."""
    report = write_heldout_report(settings)
    return [*write_plots(settings.run.files), *([report] if report else [])]


def write_heldout_report(settings: Settings) -> Path | None:
    """Write the report of the last answers about held-out images, beside those from before.

    They are those of the version `now` while a run trains. None where the run has no answers.
    """
    before = heldout_result(settings, "before")
    last = heldout_result(settings, "now") or heldout_result(settings, "after")
    shown = last or before
    if shown is None:
        return None
    result, picture = shown
    return write_report(
        result,
        settings.run.folder,
        picture,
        compare(before[0], result) if before and last else None,
        num_images=result.num_images,
    )


def heldout_result(
    settings: Settings, label: Label
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
    version = predictions.settings.get("policy_version", "the last")
    when = f"version {version}" if label == "now" else f"{label} training"
    return replace(result, name=f"{settings.run.name}, {when}"), references.image_bytes


def main() -> None:
    """Draw the results of the run whose folder is named."""
    try:
        write_run_results(load_settings(RunFolder(Path(sys.argv[1])).config))
    except (OSError, SggError) as error:
        sys.exit(f"sgg-rl: {error}")


if __name__ == "__main__":
    main()
