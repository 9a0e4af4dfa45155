"""What `sgg-rl rehearse` prints at its end, for 80 columns."""

import textwrap
from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table

from launcher.rehearsal.rehearse import RESULT, Rehearsal

_WIDTH = 80


def rehearsal_view(found: Rehearsal) -> RenderableType:
    """Stages, processes, the full run's memory, and what was other than in the recipe."""
    here, full = found.layers
    return Group(
        _stages(found),
        *_lines(
            f"\nhere, {here} of {full} layers; {found.model}:",
            [str(change) for change in found.cut],
        ),
        "",
        _peaks(found),
        "",
        *([_memory(found), ""] if found.memory else ()),
        *_lines("the full run would be refused:", found.refused),
        f"all logs: {found.folder / 'logs'}; these numbers: {found.folder / RESULT}",
    )


def _stages(found: Rehearsal) -> Table:
    table = Table("stage", "result", "seconds", "what came of it", box=None, width=_WIDTH)
    for stage in found.stages:
        seconds = "" if stage.seconds is None else f"{stage.seconds:.1f}"
        table.add_row(stage.name, stage.state, seconds, stage.detail)
    table.columns[2].justify = "right"
    return table


def _peaks(found: Rehearsal) -> Table:
    table = Table("process", "peak memory (GiB)", box=None)
    if found.gpu_peaks:
        table.add_column("of the GPU's")
    for name, gib in found.peaks.items():
        gpu = [f"{found.gpu_peaks[name]:.1f}"] if name in found.gpu_peaks else []
        table.add_row(name, f"{gib:.1f}", *gpu)
    return table


def _memory(found: Rehearsal) -> Table:
    names = ("trainer process (GiB)", "estimate", "measured", "ratio", "full run", "scaled", "of")
    table = Table(*names, box=None, width=_WIDTH)
    for row in found.memory:
        numbers = (row.estimated, row.measured, row.ratio, row.full, row.scaled, row.limit)
        digits = (1, 1, 2, 1, 1, 1)
        words = ("" if n is None else f"{n:.{d}f}" for n, d in zip(numbers, digits, strict=True))
        table.add_row(row.job, *words)
    return table


def _lines(head: str, items: list[str]) -> Iterator[str]:
    if not items:
        return
    yield head
    for item in items:
        yield textwrap.fill(item, _WIDTH, initial_indent="  ", subsequent_indent="    ")
