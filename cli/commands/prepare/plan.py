"""`sgg-rl plan`: how to split GPUs between trainer and rollout servers."""

from pathlib import Path
from typing import Annotated

import typer

from cli.options import AsJson, Config, ShortOverrides
from cli.settings import run_settings
from cli.views.as_json import print_json
from cli.views.progress import counted
from services.errors import SettingsError

_WIDTH = 100

ClusterName = Annotated[
    str, typer.Option("--cluster", help="One that ships, such as 80gbx1, or a TOML file.")
]
Measure = Annotated[
    Path | None, typer.Option(help="Folder of an earlier run: its rates instead of derived ones.")
]
NumGpus = Annotated[str, typer.Option(help="More numbers of GPUs to show: 64,256,1024.")]


def plan(
    cluster: ClusterName,
    config: Config = None,
    set_: ShortOverrides = None,
    measure: Measure = None,
    gpus: NumGpus = "",
    as_json: AsJson = False,
) -> None:
    """Simulate a run on a cluster: steps an hour, who waits, and what saturates.

    Nothing is started, and no GPU is needed.

    Example: sgg-rl plan --cluster a100x16 --config demo
    """
    from planning.simulation.cluster import check_plan, load_cluster

    numbers, on = _numbers(gpus), load_cluster(cluster)
    loaded = run_settings(config, set_)
    check_plan(loaded, on)  # before the imports that take seconds
    with counted("splits simulated") as on_split:
        from planning.simulation.compare import make_plan
        from planning.simulation.view import plan_json, plan_view

        found = make_plan(loaded, on, run=measure, gpus=numbers, on_split=on_split)
    if as_json:
        print_json(plan_json(found))
        return
    from launcher.views.terminal import SafeConsole

    console = SafeConsole()
    console.width = min(_WIDTH, console.width) if console.is_terminal else _WIDTH
    console.print(plan_view(found))


def _numbers(text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(number) for number in text.split(",") if number)
    except ValueError:
        numbers = (0,)
    if any(number < 2 for number in numbers):
        raise SettingsError(f"--gpus {text}: write numbers from 2 on, such as 64,256,1024")
    return numbers
