"""`sgg-rl infer`: a model's scene graphs of a dataset's images."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cli.options import AsJson, ShortOverrides
from cli.settings import OWN_CONFIG
from cli.views.as_json import print_json
from services.errors import InvalidInputError, SettingsError

if TYPE_CHECKING:
    from services.settings import Settings

Data = Annotated[
    list[str],
    typer.Argument(
        help="A dataset (parquet, folder, JSON, name on the hub), or pictures as predict's."
    ),
]
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
BestOf = Annotated[
    int | None,
    typer.Option(min=1, max=64, metavar="N", help="Sample so many answers, keep the likeliest."),
]
Consensus = Annotated[
    int | None,
    typer.Option(min=1, max=64, metavar="N", help="Sample so many, keep what half of them say."),
]
Scores = Annotated[
    bool | None, typer.Option("--scores", help="Score each object and relationship.")
]
MaxTokens = Annotated[int | None, typer.Option(help="Of one answer.")]
Constrain = Annotated[
    Literal["never", "failures", "all"] | None,
    typer.Option(metavar="WHOM", help="Asked again under a grammar: never, failures or all."),
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
    best_of: BestOf = None,
    consensus: Consensus = None,
    scores: Scores = None,
    as_json: AsJson = False,
) -> None:
    """Write OUTPUT/predictions.jsonl: one scene graph for each image of DATA, in its order.

    Through the servers given, else those of the run, else one of --model that is started for it.
    The same command again goes on where it was stopped.

    Example: sgg-rl infer data/val.parquet --model runs/demo/checkpoint -o out
    """
    images = _dataset_or_pictures(named(data))
    settings = inference_settings(
        model,
        config,
        set_,
        template=template,
        vocabulary=vocabulary,
        train=images if isinstance(images, str) else "pictures",
        thinking=thinking,
        evaluation={
            "temperature": temperature,
            "top_p": top_p,
            "top_k": top_k,
            "best_of": best_of,
            "consensus": consensus,
            "scores": scores,
            "max_tokens": max_tokens,
            "constrain": constrain,
        },
        seed=seed,
    )
    from launcher.inference import run_inference
    from launcher.views.inference import summary_values
    from launcher.views.terminal import SafeConsole

    done = run_inference(
        settings,
        images,
        output,
        servers=server or (),
        own_server=model is not None and not server,
        limit=limit,
        console=SafeConsole(stderr=True) if as_json else None,
    )
    if as_json:
        print_json(summary_values(done, output))


def named(given: list[str]) -> list[str]:
    """Names of a command line, with the lines of standard input in the place of `-`.

    Raises:
        InvalidInputError: Nothing stands there.
    """
    lines = [line.strip() for line in sys.stdin] if "-" in given else []
    if "-" in given and not any(lines):
        raise InvalidInputError("standard input names no picture: one a line is read there")
    return [n for name in given for n in (lines if name == "-" else [name]) if n]


def _dataset_or_pictures(names: list[str]) -> str | list[Path]:
    """One name may be a dataset's; of several, each means pictures.

    Raises:
        InvalidInputError: A dataset is among several.
    """
    if len(names) == 1:
        return names[0]
    from scene_data.reading.pictures import find_pictures
    from scene_data.reading.sources import are_pictures

    for name in names:
        if not are_pictures(Path(name)):
            raise InvalidInputError(
                f"{name} is not a picture, a folder, a list (.txt) or a pattern of some: a dataset "
                "is given alone"
            )
    return find_pictures(names)


def inference_settings(
    model: str | None,
    config: list[Path] | None,
    overrides: list[str] | None,
    *,
    template: str | None,
    vocabulary: str | None,
    train: str,
    thinking: bool | None,
    evaluation: Mapping[str, Any],
    seed: int | None,
) -> "Settings":
    """The settings that a model is asked by: short options over `--set` over files.

    Args:
        model: A model's folder, a run's or a name on the hub. Without `config`, the settings of the
            run that made it hold.
        config: Settings files.
        overrides: Of `--set`.
        template: Of `[data]`.
        vocabulary: Of `[data]`; it implies the template `closed`.
        train: Of `[data]`, where no file says it.
        thinking: Of `[data]`; None leaves a setting as it is.
        evaluation: Of `[evaluation]`, likewise.
        seed: Of `[run]`.

    Raises:
        SettingsError: No model is named, or a setting is wrong.
    """
    from services.run_folder import trained_model
    from services.settings import load_settings

    files = list(config or [])
    if not files and model is None:
        if not OWN_CONFIG.is_file():
            raise SettingsError(
                "say which model: --model, or --config with the settings of its run "
                f"({OWN_CONFIG}, where that is here)"
            )
        files = [OWN_CONFIG]
    if model is not None and Path(model).is_dir():
        folder, of_run = trained_model(Path(model))
        model = str(folder)
        if of_run and not files:
            files = [of_run]
            print(f"asked as {of_run} says: other settings are --config or --set", file=sys.stderr)
    if not files:
        print("asked by the defaults: --config names the settings of a run", file=sys.stderr)
    if vocabulary is not None:
        template = template or "closed"
    vocabulary = "" if template in ("open", "toy") else vocabulary
    tables: dict[str, Mapping[str, Any]] = {
        "model": {"path": model},
        "data": {"template": template, "vocabulary": vocabulary, "thinking": thinking},
        "evaluation": evaluation,
        "run": {"seed": seed},
    }
    short = [
        f"{table}.{name}={json.dumps(value) if value != '' else ''}"
        for table, fields in tables.items()
        for name, value in fields.items()
        if value is not None
    ]
    below = {"data": {"train": train}}
    return load_settings(files, [*(overrides or []), *short], below=below)
