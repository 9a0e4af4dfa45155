"""`sgg-rl evaluate`: how good predicted scene graphs are, and whether two runs differ."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cli.options import AsJson
from cli.views.as_json import print_json
from cli.views.progress import staged
from services.errors import SettingsError

if TYPE_CHECKING:
    from rich.console import RenderableType

Predictions = Annotated[
    Path | None, typer.Argument(help="A predictions.jsonl, its folder, or R1-SGG's folder.")
]
Reference = Annotated[
    str | None, typer.Option(help="Parquet file, folder, JSON or JSONL, or name on the hub.")
]
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")]
Split = Annotated[str | None, typer.Option(help="The reference's name, for headings.")]
TaskOption = Annotated[
    Literal["sgg", "det", "cls"] | None,
    typer.Option(help="Graphs, objects, or names; else what the predictions' settings say."),
]
Train = Annotated[str | None, typer.Option(help="The training split: zero-shot and frequencies.")]
VocabularyName = Annotated[
    str | None, typer.Option(help="Map predicted names to those of vg150, psg or a file.")
]
AliasFiles = Annotated[
    list[Path] | None, typer.Option("--aliases", help="More synonyms: name,alias,alias a line.")
]
EmbeddingModel = Annotated[
    str | None, typer.Option(help="Maps the names that are left: a sentence-transformers model.")
]
NumImages = Annotated[int, typer.Option("--images", min=0, help="How many the report shows.")]
Compare = Annotated[
    tuple[Path, Path] | None,
    typer.Option(help="Two results folders: the second against the first, paired.", metavar="A B"),
]


def evaluate(
    output: Output,
    predictions: Predictions = None,
    reference: Reference = None,
    split: Split = None,
    task: TaskOption = None,
    train: Train = None,
    vocabulary: VocabularyName = None,
    aliases: AliasFiles = None,
    embedding_model: EmbeddingModel = None,
    images: NumImages = 100,
    compare: Compare = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate PREDICTIONS, or compare two evaluations.

    Writes metrics.json, images.jsonl, ratios.npz and report.html into the output folder.

    Example: sgg-rl evaluate out --reference data/val.parquet --split val -o result
    """
    if compare is not None:
        if any((predictions, reference, split, task, train, vocabulary, aliases, embedding_model)):
            raise SettingsError("--compare reads two finished evaluations: give --output beside it")
        from cli.views.evaluate import comparison_view
        from evaluation.evaluate_files import run_comparison

        with staged() as on_stage:
            compared = run_comparison(compare, output, images, on_stage)
        _print(comparison_view(compared), output / "comparison.json", as_json=as_json)
        return
    if predictions is None or reference is None or split is None:
        raise SettingsError("give PREDICTIONS with --reference and --split, or --compare A B")
    from cli.views.evaluate import result_view
    from evaluation.evaluate_files import Request, run_evaluation

    request = Request(
        predictions=predictions,
        reference=reference,
        split=split,
        task=task,
        train=train,
        vocabulary=vocabulary,
        aliases=tuple(aliases or ()),
        embedding_model=embedding_model,
        num_images=images,
    )
    with staged() as on_stage:
        result = run_evaluation(request, output, on_stage)
    _print(result_view(result), output / "metrics.json", as_json=as_json)


def _print(view: "RenderableType", written: Path, *, as_json: bool) -> None:
    """The view, or what was written for scripts."""
    if as_json:
        print_json(json.loads(written.read_bytes()))
        return
    from launcher.views.terminal import SafeConsole

    console = SafeConsole(markup=False, emoji=False, highlight=False)
    console.print(view)
    console.print(f"\n{written.with_name('report.html')}", soft_wrap=True)
