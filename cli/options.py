"""Options that several commands share, each with one help text."""

from pathlib import Path
from typing import Annotated

import typer

Config = Annotated[
    list[Path] | None,
    typer.Option(
        "--config",
        "-c",
        help="A TOML file, or the name of one that ships; else run.toml. Later ones win.",
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="section.field=value, over the file and environment."),
]
ShortOverrides = Annotated[list[str] | None, typer.Option("--set", help="section.field=value.")]
Run = Annotated[
    Path | None,
    typer.Argument(help="The run's folder, such as runs/demo; or give --config."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else, for scripts.")]
AllowChanges = Annotated[
    bool,
    typer.Option(
        "--allow-changes",
        help="With --resume: also with another dataset, instruction, reward or algorithm.",
    ),
]
