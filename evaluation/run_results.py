"""What a run leaves to be looked at once its last step is done."""

from pathlib import Path

from evaluation.heldout_report import write_heldout_report
from evaluation.plots import write_plots
from services.settings import Settings


def write_run_results(settings: Settings) -> list[Path]:
    """Write `plots/*.png`, and `report.html` where the run has answers about held-out images."""
    folder = settings.run.folder
    written = write_plots(folder)
    if (folder / "heldout-after.jsonl").exists():
        written.append(write_heldout_report(settings))
    return written
