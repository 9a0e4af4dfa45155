"""What `sgg-rl infer` shows: a bar on a terminal, else a line now and then; and a summary."""

import os
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from evaluation.inference.progress import Progress
from evaluation.reading.lines import GraphLine
from launcher.views.terminal import LiveView, SafeConsole, Say
from services.images import MAX_IMAGE_PIXELS
from services.printable import counted

_NUM_SAID = 20
"""Failed pictures that are said"""
_LINE_EVERY_S = 10.0


class ProgressView(LiveView):
    """Shows a `Progress` whenever `update` is called; call it several times a second."""

    def __init__(self, progress: Progress, console: SafeConsole) -> None:
        """Shows nothing yet."""
        super().__init__(console)
        self._progress = progress
        self._next_line = 0.0

    def __exit__(self, *_: object) -> None:
        self._next_line = 0.0
        super().__exit__()

    def update(self) -> None:
        """Show the present state."""
        if self._progress.started is None:
            return
        text = progress_line(self._progress)
        if self._live:
            view = Table.grid()  # a bar alone does not end its line
            view.add_row(ProgressBar(self._progress.total, self._progress.done))
            view.add_row(Text(text))
            self._live.update(view, refresh=True)
        elif time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + _LINE_EVERY_S
            self._console.print(text, soft_wrap=True, highlight=False, markup=False)


def progress_line(progress: Progress) -> str:
    """The state in one line.

    Example: `120/500 images  3.1 images/s  412 tok/s  failed 3 (invalid_json 3)  0:02:02 left`
    """
    left = progress.left_s
    parts = [
        f"{progress.done}/{progress.total} images",
        f"{progress.images_per_s:.1f} images/s",
        f"{progress.tokens_per_s:,.0f} tok/s",
        _failures(progress),
    ]
    num_servers = len(progress.fleet.members) if progress.fleet else 0
    num_up = progress.fleet.num_up if progress.fleet else 0
    if num_up < num_servers or num_servers > 1:
        parts.append(f"servers {num_up}/{num_servers}")
    if num_servers and not num_up:
        parts.append("waiting for a server")
    elif left:
        parts.append(f"{timedelta(seconds=round(left))} left")
    return "  ".join(parts)


def summary(progress: Progress, folder: Path) -> Table:
    """What came of an inference."""
    table = Table.grid(padding=(0, 2))
    earlier = f", {progress.skipped} of them earlier" if progress.skipped else ""
    table.add_row("images", f"{progress.done}{earlier}")
    table.add_row("without a graph", _failures(progress).removeprefix("failed "))
    if progress.unconstrained:
        failed = progress.unconstrained.total() - progress.unconstrained["ok"]
        table.add_row("asked again under the schema", f"{progress.unconstrained.total()}")
        table.add_row("of these without a free graph", f"{failed}")
    if progress.started is not None:
        rate = f"{progress.images_per_s:.2f} images/s, {progress.tokens_per_s:,.0f} tokens/s"
        table.add_row("speed", f"{rate}, {progress.elapsed_s:.1f} s")
    table.add_row("policy versions", _versions(progress))
    table.add_row("written", str(folder / "predictions.jsonl"))
    return table


def summary_values(progress: Progress, folder: Path) -> dict[str, Any]:
    """The same for scripts."""
    return {
        "images": progress.done,
        "done_earlier": progress.skipped,
        "statuses": progress.statuses,
        "unconstrained_statuses": progress.unconstrained,
        "policy_versions": sorted(progress.versions),
        "images_per_s": progress.images_per_s,
        "tokens_per_s": progress.tokens_per_s,
        "seconds": progress.elapsed_s,
        "written": folder / "predictions.jsonl",
    }


def say_failed(say: Say, failed: Sequence[GraphLine], files: Mapping[str, Path]) -> None:
    """Which pictures no model has seen, why, and what to do.

    Args:
        say: Prints a line.
        failed: Their lines.
        files: Each one's file by its id, there or not.
    """
    if not failed:
        return
    say(f"{counted(len(failed), 'picture')} could not be asked about:")
    for line in failed[:_NUM_SAID]:
        image_id, problem = str(line.image_id), line.problem or line.status
        say(f"  {problem}" if problem.startswith(image_id) else f"  {image_id}: {problem}")
    if (more := len(failed) - _NUM_SAID) > 0:
        say(f"  and {more} more: those with a `problem` in predictions.jsonl")
    num_absent = sum(not os.access(files[str(line.image_id)], os.R_OK) for line in failed)
    if num_absent:
        say("Files that cannot be opened: mend their names, links or permissions.")
    if num_absent < len(failed):
        which = "The others: save them" if num_absent else "Save them"
        say(f"{which} again as JPEG or PNG of at most {MAX_IMAGE_PIXELS:,} pixels.")
    say("The same command then asks about these alone.")


def _failures(progress: Progress) -> str:
    reasons = ", ".join(
        f"{status} {number}"
        for status, number in sorted(progress.statuses.items())
        if status != "ok" and number
    )
    return f"failed {progress.num_failed}" + (f" ({reasons})" if reasons else "")


def _versions(progress: Progress) -> str:
    if len(progress.versions) < 2:
        return ", ".join(map(str, progress.versions)) or "none"
    return (
        f"{min(progress.versions)} to {max(progress.versions)}: they changed meanwhile; each line "
        "has its own"
    )
