"""What a run leaves to be looked at once its last step is done."""

from pathlib import Path

from evaluation.of_a_run.plots import write_plots
from evaluation.of_a_run.report import write_heldout_report
from services.settings import Settings


def write_run_results(settings: Settings) -> list[Path]:
    """Write `plots/*.png`, and `report.html` where the run has answers about held-out images."""
    written = write_plots(settings.run.files)
    if settings.run.files.heldout("after").exists():
        written.append(write_heldout_report(settings))
    return written
