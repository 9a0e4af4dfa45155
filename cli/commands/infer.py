"""`sgg-rl infer`: a model's scene graphs of a dataset's images."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from cli.options import AsJson, ShortOverrides
from cli.views.as_json import print_json
from services.errors import SettingsError

Data = Annotated[str, typer.Argument(help="Parquet file, folder, JSON, or name on the hub.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder; one that is there goes on.")]
Model = Annotated[str | None, typer.Option(help="Folder or hub name; a server of it is started.")]
Config = Annotated[list[Path] | None, typer.Option("--config", "-c", help="The run's TOML file.")]
Servers = Annotated[list[str] | None, typer.Option("--server", help="URL; give it for each.")]
Limit = Annotated[int | None, typer.Option(min=1, metavar="N", help="Only the first images.")]
Template = Annotated[
    str | None, typer.Option(help="The instruction: open, closed, toy or a text file.")
]
Vocabulary = Annotated[
    str | None, typer.Option(help="Names to use: vg150, psg or a file; implies closed.")
]
Thinking = Annotated[bool | None, typer.Option(help="Ask for <think> before the answer.")]
Temperature = Annotated[
    float | None, typer.Option(min=0, max=2, metavar="T", help="0, the default, is greedy.")
]
TopP = Annotated[float | None, typer.Option(help="With a temperature.")]
TopK = Annotated[int | None, typer.Option(help="With a temperature.")]
Seed = Annotated[int | None, typer.Option(help="With a temperature.")]
MaxTokens = Annotated[int | None, typer.Option(help="Of one answer.")]
Constrain = Annotated[
    Literal["never", "failures", "all"] | None,
    typer.Option(metavar="WHOM", help="Asked again under a JSON Schema: never, failures or all."),
]


def infer(
    data: Data,
    output: Output,
    model: Model = None,
    config: Config = None,
    set_: ShortOverrides = None,
    server: Servers = None,
    limit: Limit = None,
    template: Template = None,
    vocabulary: Vocabulary = None,
    thinking: Thinking = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    seed: Seed = None,
    max_tokens: MaxTokens = None,
    constrain: Constrain = None,
    as_json: AsJson = False,
) -> None:
    """Write OUTPUT/predictions.jsonl: one scene graph for each image of DATA, in its order.

    Through the servers given, else those of the run, else one of --model that is started for it.
    The same command again goes on where it was stopped.

    Example: sgg-rl infer data/val.parquet --model runs/demo/checkpoint -o out
    """
    from services.settings import load_settings

    if not config and model is None:
        raise SettingsError("say which model: --model, or --config with the settings of its run")
    if vocabulary is not None:
        template = template or "closed"
    short = {
        "model.path": model,
        "data.train": None if config else data,
        "data.template": template,
        "data.vocabulary": "" if template in ("open", "toy") else vocabulary,
        "data.thinking": thinking,
        "evaluation.temperature": temperature,
        "evaluation.top_p": top_p,
        "evaluation.top_k": top_k,
        "run.seed": seed,
        "evaluation.max_tokens": max_tokens,
        "evaluation.constrain": constrain,
    }
    overrides = [
        f"{name}={json.dumps(value) if value != '' else ''}"
        for name, value in short.items()
        if value is not None
    ]
    settings = load_settings(config or [], [*(set_ or []), *overrides])
    from launcher.inference import run_inference
    from launcher.views.inference import summary_values
    from launcher.views.terminal import SafeConsole

    done = run_inference(
        settings,
        data,
        output,
        servers=server or (),
        own_server=model is not None and not server,
        limit=limit,
        console=SafeConsole(stderr=True) if as_json else None,
    )
    if as_json:
        print_json(summary_values(done, output))
