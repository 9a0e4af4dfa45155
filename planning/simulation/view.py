"""A plan for people, in 100 columns, and for scripts."""

from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from planning.simulation.compare import Plan
from planning.simulation.limits import Limit
from planning.simulation.splits import Split
from services.printable import counted

_NEAR = 0.8
"""Share of a capacity from which on it is said to be near."""


def plan_view(plan: Plan) -> Group:
    """The whole of it."""
    gpus, trainer = plan.cluster.gpus, plan.settings.trainer
    head = (
        f"{gpus.count} GPUs ({gpus.kind}), {plan.settings.model.name}, weights over "
        f"{plan.settings.weights.transport}, {trainer.groups_per_step} groups of "
        f"{trainer.group_size} a step, max_policy_lag {trainer.max_policy_lag}"
    )
    parts: list[RenderableType] = [Text(f"{head}\n", style="bold"), _rates(plan), _splits(plan)]
    if plan.scaling:
        parts.append(_scaling(plan))
    return Group(*parts, _limits(plan), Text(conclusion(plan)))


def plan_json(plan: Plan) -> dict[str, Any]:
    """Everything, with the sources of all rates."""
    return {
        "gpus": plan.cluster.gpus.model_dump(),
        "num_images": plan.num_images,
        "rates": {name: given.model_dump() for name, given in plan.table.items()},
        "splits": [_split_json(plan, split) for split in plan.splits],
        "limits": [_limit_json(limit) for limit in plan.limits],
        "scaling": [
            {
                "num_gpus": one.num_gpus,
                **_split_json(plan, one.split),
                "first": _limit_json(one.first),
            }
            for one in plan.scaling
        ],
        "conclusion": conclusion(plan),
    }


def conclusion(plan: Plan) -> str:
    """One paragraph."""
    split, first = plan.best, plan.limits[0]
    return " ".join([*_best_words(plan, split), _waiting_words(split), _limit_words(split, first)])


def _best_words(plan: Plan, split: Split) -> Iterator[str]:
    shape = split.shape
    if shape.colocated:
        yield f"Trainer and rollout servers share {counted(shape.num_trainers, 'GPU')}:"
    else:
        gpus = counted(shape.num_trainers, "GPU")
        servers = counted(shape.num_servers, "server")
        of = f", {servers} of {shape.gpus_per_server}" if shape.gpus_per_server > 1 else ""
        yield f"Best: {gpus} to train and {shape.num_rollout_gpus} to sample{of}:"
    yield (
        f"{split.steps_per_hour:,.0f} steps an hour, an epoch of {plan.num_images:,} images in "
        f"{plan.epoch_h(split):.1f} h."
    )
    if not split.fits:
        yield "No split's trainer fits into the GPU's memory by the estimate of --dry-run."
    assumed = sorted(n for n, given in plan.table.items() if given.basis != "measured")
    if assumed:
        yield (
            f"{len(assumed)} of {len(plan.table)} rates are not measured on these GPUs: take a "
            "short run and --measure it."
        )


def _waiting_words(split: Split) -> str:
    if split.trainer_idle > 0.15 and split.sampler_idle > 0.15:
        return (
            "Both sides wait for each other: a larger trainer.max_policy_lag, or more groups a "
            "step, would overlap them."
        )
    if split.trainer_idle > split.sampler_idle:
        return "The trainer waits for the samplers most."
    return "The samplers wait for the trainer most."


def _limit_words(split: Split, first: Limit) -> str:
    shape = split.shape
    gpus = shape.num_trainers + (0 if shape.colocated else shape.num_rollout_gpus)
    reached = f"{first.name} is at {first.share:.0%} of what it can take"
    numbers = f"({first.used:.3g} of {first.capacity:.3g} {first.unit})"
    if first.share > _NEAR:
        return f"{reached} {numbers}: {first.remedy}."
    most = gpus / first.share
    grown = f", and full near {most:,.0f} GPUs with a batch that grows with them" * (most < 1e5)
    return f"Of the parts that are one, {reached} {numbers}{grown}; then: {first.remedy}."


_text = partial(Column, no_wrap=True)
_number = partial(Column, justify="right", no_wrap=True)
_folded = partial(Column, overflow="fold")


def _table(title: str, *columns: Column) -> Table:
    return Table(*columns, title=title, title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0))


def _rates(plan: Plan) -> Table:
    title = "rates, in seconds, tokens and bytes; benchmarks ran on 2 cores without a GPU"
    columns = (_text("rate"), _number("value"), _text("basis"), _folded("source"))
    table = _table(title, *columns)
    for name, given in plan.table.items():
        table.add_row(name, f"{given.value:,.4g}", given.basis, given.source)
    return table


def _splits(plan: Plan) -> Table:
    title = "splits of the GPUs; stale: groups a step that came back too old"
    names = ("train", "sample", "steps/h", "epoch h", "idle: trainer", "sampler")
    last = (_text("policy_lag"), _number("stale"), Column())
    table = _table(title, *map(_number, names), *last)
    for split in plan.splits:
        is_best = split is plan.best
        table.add_row(*_cells(plan, split), _remark(split, is_best), style="green" * is_best)
    return table


def _remark(split: Split, is_best: bool) -> str:
    if not split.fits:
        return f"{split.trainer_gib:.0f} GiB: does not fit"
    return "<- best" * is_best


def _cells(plan: Plan, split: Split) -> list[str]:
    shape = split.shape
    return [
        str(shape.num_trainers),
        "the same" if shape.colocated else str(shape.num_rollout_gpus),
        f"{split.steps_per_hour:,.0f}",
        f"{plan.epoch_h(split):.1f}",
        f"{split.trainer_idle:.0%}",
        f"{split.sampler_idle:.0%}",
        ", ".join(f"{lag}: {share:.0%}" for lag, share in split.lags.items()),
        f"{split.stale_per_step:.1f}",
    ]


def _scaling(plan: Plan) -> Table:
    title = "scaling: the best split, with the batch as it is and grown with the GPUs"
    names = ("GPUs", "groups", "train", "sample", "steps/h", "epoch h", "idle: tr.", "sa.")
    table = _table(title, *map(_number, names), _text("nearest to full"))
    for one in plan.scaling:
        table.add_row(
            str(one.num_gpus),
            str(one.split.shape.groups_per_step),
            *_cells(plan, one.split)[:6],
            f"{one.first.name} {one.first.share:.0%}",
        )
    return table


def _limits(plan: Plan) -> Table:
    columns = (_text("part"), _number("used"), _number("of"), _text(), _folded("remedy"))
    table = _table("parts that are one, at the best split", *columns)
    for limit in plan.limits:
        numbers = (f"{limit.used:.3g}", f"{limit.capacity:.3g}", limit.unit)
        style = "yellow" if limit.share > _NEAR else ""
        table.add_row(limit.name, *numbers, limit.remedy, style=style)
    return table


def _split_json(plan: Plan, split: Split) -> dict[str, object]:
    return asdict(split) | {"best": split is plan.best, "epoch_h": plan.epoch_h(split)}


def _limit_json(limit: Limit) -> dict[str, object]:
    return asdict(limit) | {"share": limit.share}
