"""`sgg-rl predict`: a model's scene graphs of pictures, to look at."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from cli.commands.use.infer import (
    BestOf,
    Config,
    Consensus,
    Constrain,
    MaxTokens,
    Scores,
    Seed,
    Servers,
    Temperature,
    Template,
    Thinking,
    TopP,
    Vocabulary,
    inference_settings,
    named,
)
from cli.options import ShortOverrides

Pictures = Annotated[
    list[str],
    typer.Argument(help="Files, folders, lists (.txt), patterns; - reads names from stdin."),
]
Model = Annotated[
    str | None, typer.Option(help="Folder of a model or a run, or hub name; it is started.")
]
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder; one that is there goes on.")]
Draw = Annotated[Literal["png", "svg", "none"], typer.Option(help="Kind of the drawings.")]


def predict(
    pictures: Pictures,
    model: Model = None,
    output: Output = Path("predictions"),
    server: Servers = None,
    config: Config = None,
    set_: ShortOverrides = None,
    draw: Draw = "png",
    template: Template = None,
    vocabulary: Vocabulary = None,
    thinking: Thinking = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    seed: Seed = None,
    best_of: BestOf = None,
    consensus: Consensus = None,
    scores: Scores = None,
    max_tokens: MaxTokens = None,
    constrain: Constrain = None,
) -> None:
    """Write OUTPUT/predictions.jsonl, a drawing of each graph, and predictions.html to look at.

    Example: sgg-rl predict photos/ --model runs/demo

    Through the servers given, else those of the run, else one of --model that is started for it.
    The same command again does what is missing.
    """
    from launcher.inference import run_prediction, served_model
    from scene_data.reading.pictures import find_pictures

    found = find_pictures(named(pictures), but=output)
    if server and model is None and not config:
        model = served_model(server, found)
    settings = inference_settings(
        model,
        config,
        set_,
        template=template,
        vocabulary=vocabulary,
        train="pictures",
        thinking=thinking,
        evaluation={
            "temperature": temperature,
            "top_p": top_p,
            "best_of": best_of,
            "consensus": consensus,
            "scores": scores,
            "max_tokens": max_tokens,
            "constrain": constrain,
        },
        seed=seed,
    )
    own = model is not None and not server
    all_seen = run_prediction(
        settings, found, output, servers=server or (), own_server=own, draw=draw
    )
    if not all_seen:
        raise typer.Exit(1)
