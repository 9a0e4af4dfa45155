"""What `sgg-rl run` prints before and after a run."""

import os
from collections.abc import Iterator
from typing import Any

from rich.table import Table

from launcher.run_parts import server_names
from launcher.views.run_lines import MEASURES
from planning.placement import GpuSet, Placement, kinds, numbers
from planning.preflight.gpus import has_cuda_build, visible_gpus
from services.printable import counted
from services.redis.client import without_password
from services.run_folder import RunFolder
from services.settings import Settings


def plan_lines(
    settings: Settings, placement: Placement, urls: list[str], num_steps: int
) -> list[str]:
    """The parts, where each is and on which GPUs, before anything starts; for 80 columns.

    Args:
        settings: The run's settings, ports resolved.
        placement: The GPUs.
        urls: The rollout servers' addresses.
        num_steps: The run's steps.
    """
    ranks = settings.trainer.num_ranks
    rows = [
        ("redis", without_password(settings.redis.url), ""),
        ("reward", settings.reward.url, ""),
        *(
            (name, url, _on(gpus))
            for name, url, gpus in zip(server_names(urls), urls, placement.servers, strict=True)
        ),
        ("trainer", "1 process" if ranks == 1 else f"{ranks} ranks", _on(placement.trainer)),
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    return [
        *_console_lines(settings),
        f"run {settings.run.name}: {counted(num_steps, 'step')} of {settings.model.name}",
        f"folder {settings.run.folder}, logs in {settings.run.files.logs}",
        *(f"  {a:{widths[0]}}  {b:{widths[1]}}  {c}".rstrip() for a, b, c in rows),
        *_gpu_lines(settings, placement),
    ]


def summary_table(evaluations: dict[str, dict[str, Any]]) -> Table:
    """Every number of the held-out evaluations, before and after."""
    before, after = evaluations.get("before", {}), evaluations.get("after", {})
    table = Table(
        "held out, strict", "before", "after", "change", title="Result", title_justify="left"
    )
    for name, new in after.items():
        old = before.get(name)
        if isinstance(new, int | float) and isinstance(old, int | float):
            table.add_row(name, f"{old:.4g}", f"{new:.4g}", f"{new - old:+.4g}")
    return table


def closing_lines(evaluations: dict[str, dict[str, Any]], files: RunFolder) -> list[str]:
    """The last three lines of a demo: what improved, where to look, what to do next."""
    before, after = evaluations.get("before", {}), evaluations.get("after", {})
    better = [
        f"{label} {before[name]:.3f} to {after[name]:.3f}"
        for name, label in MEASURES.items()
        if name in before and after.get(name, 0.0) > before[name]
    ]
    return [
        f"improved on held-out images: {', '.join(better[:1]) or 'nothing; train more steps'}",
        f"look: open {files.report} in a browser, pictures before and after",
        f"next: `sgg-rl predict PICTURES --model {files.path}`, or `sgg-rl demo --data DATA`",
    ]


def _console_lines(settings: Settings) -> Iterator[str]:
    if settings.monitor.console:
        yield f"watch it at {settings.monitor.url}/runs/{settings.run.name}"


def _gpu_lines(settings: Settings, placement: Placement) -> Iterator[str]:
    if not placement.trainer:
        yield f"no GPU: all on this machine's {os.cpu_count()} cores"
        if not has_cuda_build() and (unused := visible_gpus()):
            yield f"{kinds(unused)} stays idle: the packages are for CPUs (EXTRA=cuda)"
        return
    used = list(dict.fromkeys([*placement.trainer, *(gpu for s in placement.servers for gpu in s)]))
    yield f"GPUs: {kinds(used)}"
    if placement.shared:
        share = settings.rollout.gpu_memory_utilization
        yield f"rank and server share each GPU: rollout.gpu_memory_utilization = {share:g}"
    if placement.idle:
        what = f"trainer.num_ranks and cluster.num_rollout_servers use {len(used)}"
        yield f"{_on(placement.idle)} stays idle: {what}"


def _on(gpus: GpuSet) -> str:
    return f"GPU {numbers(gpus)}" if gpus else ""
