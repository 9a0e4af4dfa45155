"""`sgg-rl reproduce`: the commands of a published table."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer


def reproduce(
    table: Annotated[Literal["r1-sgg"], typer.Argument(help="arXiv 2504.13617, VG150 and PSG.")],
    stage: Annotated[
        Literal["all", "sft", "grpo", "infer", "evaluate"], typer.Option(help="Only this one.")
    ] = "all",
    row: Annotated[str, typer.Option(help="Rows whose name fits, such as 'vg150-closed-*'.")] = "*",
    hardware: Annotated[
        str | None, typer.Option(help="A file of configs/hardware to lay over each recipe.")
    ] = None,
    on: Annotated[
        Literal["here", "slurm"] | None,
        typer.Option(help="This host or Slurm jobs; by the number of GPUs when it is not given."),
    ] = None,
    runs: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path("runs"),
    tiny: Annotated[
        bool, typer.Option("--tiny", help="Run the whole chain, on toy-scenes and a CPU.")
    ] = False,
) -> None:
    """Print the commands for each row of a published table, as a bash script.

    Example: sgg-rl reproduce r1-sgg --row 'vg150-closed-*'
    """
    from launcher import reproduce as recipes

    if tiny:
        if stage != "all" or hardware or on:
            raise typer.BadParameter("--tiny is the whole chain: it takes --row and --runs only")
        sys.exit(recipes.run_tiny(runs, row))
    rows = recipes.find_rows(recipes.RECIPES, row, hardware=hardware, runs=runs)
    stages = recipes.STAGES if stage == "all" else (stage,)
    print("\n".join(recipes.commands(rows, stages, on or recipes.fitting_place(rows))))
