"""What a run leaves to be looked at: `plots/*.png`, and `report.html` of its held-out images.

Example: `python -m evaluation.of_a_run.report runs/demo` draws them, as `ResultsProcess` does.
"""

import sys
from pathlib import Path

from evaluation.of_a_run.kept_answers import kept_results
from evaluation.of_a_run.plots import write_plots
from evaluation.report.page import write_report
from evaluation.scoring.compare import compare
from services.errors import SggError
from services.host.imports import end_at_once
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
    before, last = kept_results(settings)
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


def main() -> None:
    """Draw the results of the run whose folder is named."""
    end_at_once()
    try:
        write_run_results(load_settings(RunFolder(Path(sys.argv[1])).config))
    except (OSError, SggError) as error:
        sys.exit(f"sgg-rl: {error}")


if __name__ == "__main__":
    main()
