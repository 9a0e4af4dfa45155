"""`sgg-rl score`: what completions earn, and why."""

import re
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cli.rubric import load_rubric, named_in_errors
from services.errors import InvalidInputError, SettingsError

if TYPE_CHECKING:
    from cli.commands.use.score_rows import Scored
    from reward_service.explain.explainer import Explainer, Explanation

_SIZE = re.compile(r"^([1-9]\d{0,4})x([1-9]\d{0,4})$")

File = Annotated[
    str, typer.Argument(help="One completion as text; or .jsonl, or - for JSONL from stdin.")
]
Reference = Annotated[
    Path | None, typer.Option(help="JSON with objects and relationships, boxes in pixels.")
]
ImageSize = Annotated[str | None, typer.Option(help="WxH of the image, with a reference.")]
Space = Annotated[
    str, typer.Option(help="What completions' boxes are in: relative_1000, relative_1, pixels:WxH.")
]
RubricOption = Annotated[str, typer.Option(help="Its name, or a .toml or .json file with it.")]
TermOption = Annotated[
    list[str] | None,
    typer.Option("--term", help="A term of your own for the rubric, FILE.py:FUNCTION; repeatable."),
]
TaskOption = Annotated[
    Literal["sgg", "det", "cls"], typer.Option(help="Graphs, objects only, or names only.")
]
Thinking = Annotated[bool, typer.Option("--thinking", help="The prompt asked for <think>.")]
NotationOption = Annotated[
    Literal["json", "compact"], typer.Option(help="What completions are written in.")
]
Folder = Annotated[Path | None, typer.Option(help="Holds the tables of `table:` similarities.")]
Detail = Annotated[bool, typer.Option("--detail", help="All about each, also where many are.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a completion, with all.")]


def score(
    file: File,
    reference: Reference = None,
    image_size: ImageSize = None,
    box_space: Space = "relative_1000",
    rubric: RubricOption = "balanced",
    task: TaskOption = "sgg",
    thinking: Thinking = False,
    notation: NotationOption = "json",
    similarity_folder: Folder = None,
    term: TermOption = None,
    detail: Detail = False,
    as_json: AsJson = False,
) -> None:
    """Score completions: what they hit, what they missed, and what was dropped.

    A row of JSONL has "completion", and may have "reference", "image_size",
    "box_space", "id", "num_tokens", "require_thinking" and "notation".
    Options stand in for what a row does not say. Without a reference it is only read.
    Where --rubric is the file of a run, its reward.terms are loaded too.

    Example: sgg-rl score answers.jsonl --rubric r1-soft --json
    """
    from cli.commands.use.score_rows import read_completions
    from cli.views.score import Report, complain

    explainer = _explainer(rubric, task, similarity_folder, term or [])
    defaults = _defaults(reference, image_size, box_space)
    defaults |= {"require_thinking": thinking, "notation": notation}
    report = Report(as_json=as_json, detail=detail)
    num_bad = 0
    for found in read_completions(file, defaults):
        try:
            if isinstance(found, InvalidInputError):
                raise found
            with redirect_stdout(sys.stderr):  # a term of one's own may print
                explanation = _explained(found, explainer)
            report.add(found[0].id, explanation)
        except InvalidInputError as error:
            complain(error.message)
            num_bad += 1
    report.end()
    if num_bad:
        complain(f"{num_bad} rows could not be scored" if num_bad > 1 else "a row was not scored")
        sys.exit(1)


def _explained(scored: "Scored", explainer: "Explainer") -> "Explanation":
    from reward_service.explain.explainer import explain_text
    from scene_graph.boxes import BoxSpace

    row, group = scored
    if group is None:
        task, thinking = explainer.scorer.task, row.require_thinking
        space = BoxSpace.parse(row.box_space)
        return explain_text(
            row.completion, space, task, require_thinking=thinking, notation=row.notation
        )
    return explainer.explain(group)[0]


def _explainer(
    wanted: str, task: Literal["sgg", "det", "cls"], folder: Path | None, terms: list[str]
) -> "Explainer":
    from reward_service.explain.explainer import Explainer

    found, similarities = load_rubric(wanted, folder, terms, option="--rubric")
    with named_in_errors("--rubric"):
        return Explainer(found, task, similarities)


def _defaults(reference: Path | None, image_size: str | None, box_space: str) -> dict[str, Any]:
    from cli.commands.use.score_rows import is_box_space, read_reference

    size = _SIZE.match(image_size or "")
    if image_size and not size:
        raise SettingsError(f"--image-size {image_size} is not WxH, such as 640x480")
    if not is_box_space(box_space):
        raise SettingsError(f"--box-space {box_space}: use relative_1000, relative_1 or pixels:WxH")
    return {
        "reference": read_reference(reference) if reference else None,
        "image_size": (int(size[1]), int(size[2])) if size else None,
        "box_space": box_space,
    }
