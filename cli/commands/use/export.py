"""`sgg-rl export`: a run's answers for other programs."""

from pathlib import Path
from typing import Annotated

import typer

from launcher.views.terminal import SafeConsole

export_app = typer.Typer(no_args_is_help=True, help="Write answers for other programs.")

Source = Annotated[
    Path, typer.Argument(metavar="RUN_OR_PREDICTIONS", help="A run's folder, or predictions.")
]
Output = Annotated[Path, typer.Option("--output", "-o", help="A new folder.")]
Reference = Annotated[
    str | None, typer.Option(help="The annotated graphs, where they are not those of the run.")
]


@export_app.command()
def fiftyone(source: Source, output: Output, reference: Reference = None) -> None:
    """Write a dataset that FiftyOne opens: pictures, annotated graphs and answers.

    Example: sgg-rl export fiftyone runs/demo --output demo-fiftyone
    """
    from evaluation.fiftyone import export_fiftyone

    done = export_fiftyone(source, output, reference=reference)
    console = SafeConsole()
    console.print(f"{done.num_samples} pictures with {', '.join(done.fields)} are in {done.folder}")
    if done.num_without_picture:
        console.print(f"{done.num_without_picture} have no picture that can be read: left out")
    console.print(
        "open it:  fiftyone datasets create --type fiftyone.types.FiftyOneDataset "
        f"--name {done.folder.name} --dataset-dir {done.folder}",
        soft_wrap=True,
    )
