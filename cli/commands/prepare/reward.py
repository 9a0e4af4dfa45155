"""`sgg-rl reward`: how far a rubric can be trusted."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.options import AsJson
from cli.rubric import load_rubric, named_in_errors
from cli.views.as_json import print_json
from cli.views.safe_text import safe

if TYPE_CHECKING:
    from reward_service.attack.measure import Scene
    from reward_service.attack.search import Findings

reward_app = typer.Typer(help="How far a rubric can be trusted.", no_args_is_help=True)

_NUM_SCENES = 192
"""Images of an attack: a third is searched on, the others confirm."""

RubricArgument = Annotated[
    str, typer.Argument(help="Its name, or a .toml or .json file with it, or with a run.")
]
Data = Annotated[
    str | None, typer.Option(help="A dataset whose graphs are attacked; else toy-scenes.")
]
Seed = Annotated[int, typer.Option(help="Of answers, search and toy-scenes.")]
Rounds = Annotated[int, typer.Option(min=1, help="Each tries 48 policies; 10 take seconds.")]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="Folder for attack.json and drawings."),
]
Term = Annotated[
    list[str] | None,
    typer.Option("--term", help="A term of your own for the rubric, FILE.py:FUNCTION; repeatable."),
]
Folder = Annotated[Path | None, typer.Option(help="Holds the tables of `table:` similarities.")]


@reward_app.callback()
def _reward() -> None:
    """Keep `attack` a command with a name while it is the only one."""


@reward_app.command("attack")
def attack(
    rubric: RubricArgument,
    data: Data = None,
    seed: Seed = 0,
    rounds: Rounds = 10,
    output: Output = None,
    term: Term = None,
    similarity_folder: Folder = None,
    as_json: AsJson = False,
) -> None:
    """Search for answers that raise a rubric's reward while triplet F1 falls.

    The search edits honest imperfect answers: drops, repeats, floods, renames.
    It knows what is frequent, and no image. Hackability is the reward that the
    worst hole gains, in units of what halving all errors gains; 0 is none.
    Ctrl-C ends the search early and keeps what was found.

    Example: sgg-rl reward attack r1-soft --output attack/
    """
    from reward_service.attack.certificate import findings_value, write_findings
    from reward_service.attack.search import attack as search
    from reward_service.scoring import make_scorer

    found, similarities = load_rubric(rubric, similarity_folder, term or [], option="RUBRIC")
    with named_in_errors("RUBRIC"):
        scorer = make_scorer(found, "sgg", similarities)
    if output:  # one that cannot be a folder is said before the work
        output.mkdir(parents=True, exist_ok=True)
    scenes = _scenes_of(data) if data else _toy_scenes(seed)

    def say(round_: int, tried: int) -> None:
        if round_ % max(rounds // 20, 1) == 0:
            print(f"round {round_} of {rounds}: {tried} policies tried", file=sys.stderr)

    findings = search(scorer, scenes, seed=seed, rounds=rounds, on_round=say)
    if output:
        write_findings(output, findings, scorer, seed=seed)
    if as_json:
        print_json(findings_value(findings, scorer, seed=seed))
    else:
        _print(scorer.rubric.name, findings)
    if findings.num_rounds < rounds:
        print(
            f"interrupted: this is what {findings.num_rounds} of {rounds} rounds found",
            file=sys.stderr,
        )
        raise typer.Exit(130)


def _toy_scenes(seed: int) -> list["Scene"]:
    from reward_service.attack.measure import Scene
    from scene_data.toy.scenes import SIDE, render, toy_scene

    graphs = [toy_scene(seed, index, heldout=False) for index in range(_NUM_SCENES)]
    return [
        Scene(
            image_id=f"toy-{seed}-{index}",
            width=SIDE,
            height=SIDE,
            graph=graph.scaled(1 / SIDE, 1 / SIDE),
            picture=render(graph),
        )
        for index, graph in enumerate(graphs)
    ]


def _scenes_of(path: str) -> list["Scene"]:
    """Images with triplets, spread over the dataset."""
    from reward_service.attack.measure import Scene
    from scene_data.dataset import open_dataset
    from scene_graph.cleaning import clean_columns

    dataset = open_dataset(path, task="sgg")
    step = max(len(dataset) // _NUM_SCENES, 1)
    samples = (dataset[index] for index in range(0, len(dataset), step)[:_NUM_SCENES])
    return [
        Scene(
            image_id=one.image_id,
            width=one.width,
            height=one.height,
            graph=clean_columns(
                one.graph.objects, one.graph.relationships, (one.width, one.height)
            )[0].to_graph(),
            picture=one.image_bytes,
        )
        for one in samples
    ]


def _print(name: str, findings: "Findings") -> None:
    worth = findings.hackability
    said = "not defined: halving all errors earns nothing" if worth is None else f"{worth:.2f}"
    print(f"{safe(name)}: hackability {said}; {findings.num_policies} policies tried")
    print(
        f"honest answers to {len(findings.scenes)} unseen images: "
        f"{findings.honest.totals.mean():.1%} of the highest reward, triplet F1 "
        f"{findings.honest.f1.mean():.3f}; half of the errors: {findings.honest_gain:+.1%}"
    )
    for hole in findings.holes:
        effect = hole.effect
        print(
            f"{effect.gain:+.1%} (standard error {effect.gain_error:.1%}), F1 "
            f"{hole.outcome.f1.mean():.3f}: {', then '.join(hole.policy)}"
        )
