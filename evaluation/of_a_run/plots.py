"""Pictures of a run's metrics."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from services.run_folder import RunFolder, StepRow, TableFollower

SMOOTHING = 9
"""Steps of the running mean drawn over the single steps."""


def write_plots(folder: RunFolder) -> list[Path]:
    """Draw `plots/*.png` from a run folder's `metrics.jsonl`; nothing for a run without steps."""
    rows = TableFollower[StepRow](folder.metrics).read().rows
    if not rows:
        return []
    plots = folder.plots
    plots.mkdir(exist_ok=True)
    drawings = {"reward": _reward, "terms": _terms, "phases": _phases, "learning": _learning}
    return [_save(plots / f"{name}.png", draw, rows) for name, draw in drawings.items()]


def _save(file: Path, draw: Any, rows: list[StepRow]) -> Path:
    figure, axes = plt.subplots(figsize=(8, 4.5), dpi=110, layout="constrained")
    draw(axes, rows)
    axes.set_xlabel("step")
    axes.grid(alpha=0.3)
    figure.savefig(file)
    plt.close(figure)
    return file


def _reward(axes: Axes, rows: list[StepRow]) -> None:
    steps, values = [r["step"] for r in rows], [r["reward_mean"] for r in rows]
    axes.plot(steps, values, alpha=0.35, color="tab:blue", label="each step")
    axes.plot(steps, _smooth(values), color="tab:blue", label=f"mean of {SMOOTHING} steps")
    axes.set_title("Mean reward of the sampled completions")
    axes.set_ylabel("reward")
    axes.legend()


def _terms(axes: Axes, rows: list[StepRow]) -> None:
    steps = [r["step"] for r in rows]
    for term in rows[0]["reward_terms"]:
        axes.plot(steps, _smooth([r["reward_terms"][term] for r in rows]), label=term)
    failures = _smooth([r["failure_rate"] for r in rows])
    axes.plot(steps, failures, label="parse failures", color="black", ls=":")
    axes.set_title(f"Reward terms before their weights (mean of {SMOOTHING} steps)")
    axes.set_ylim(0, 1)
    axes.legend(ncols=2)


def _phases(axes: Axes, rows: list[StepRow]) -> None:
    names = sorted({name for r in rows for name in r["phases_s"]})
    seconds = [[r["phases_s"].get(name, 0.0) for r in rows] for name in names]
    axes.stackplot([r["step"] for r in rows], seconds, labels=names)
    axes.set_title("Where the trainer's time goes")
    axes.set_ylabel("seconds of a step")
    axes.legend(loc="upper right", ncols=len(names))


def _learning(axes: Axes, rows: list[StepRow]) -> None:
    steps = [r["step"] for r in rows]
    axes.plot(steps, [r["grad_norm"] for r in rows], label="gradient norm")
    axes.plot(steps, [abs(r["mismatch_kl"]) for r in rows], label="|KL(sampler, trainer)|")
    axes.plot(steps, [max(r["clip_fraction"], 1e-6) for r in rows], label="clipped tokens, share")
    axes.set_yscale("log")
    axes.set_title("Learning")
    axes.legend()


def _smooth(values: list[float]) -> list[float]:
    half = SMOOTHING // 2
    windows = [values[max(0, i - half) : i + half + 1] for i in range(len(values))]
    return [sum(w) / len(w) for w in windows]
