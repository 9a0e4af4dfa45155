"""`sgg-rl rollouts`: the groups of a run, found by what is in them."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from cli.options import AsJson
from cli.views.safe_text import safe

_State = Literal["trained", "zero_variance", "stale", "dead"]
_Status = Literal["ok", "no_answer", "invalid_json", "schema_violation", "too_large"]
_Sort = Literal["newest", "oldest", "highest", "lowest", "widest"]

Run = Annotated[Path, typer.Argument(help="The run's folder, such as runs/demo.")]
Step = Annotated[int | None, typer.Option(min=0, help="From 0: its groups, with their answers.")]
Last = Annotated[bool, typer.Option("--last", help="As --step, of the newest step.")]
GroupId = Annotated[str | None, typer.Option(help="With its whole texts, such as demo-e0-r9.")]
State = Annotated[_State | None, typer.Option(help="What became of the group.")]
Status = Annotated[_Status | None, typer.Option(help="Of at least one answer.")]
Predicate = Annotated[str | None, typer.Option(help="That an answer names.")]
ObjectName = Annotated[str | None, typer.Option("--object", help="That an answer names.")]
Words = Annotated[str | None, typer.Option(help="In an answer; it reads all that are kept.")]
Image = Annotated[str | None, typer.Option(help="The picture's sha256, or how it begins.")]
PolicyVersion = Annotated[int | None, typer.Option(min=0, help="That sampled a token of it.")]
Truncated = Annotated[bool, typer.Option("--truncated", help="An answer was cut at max_tokens.")]
RewardMin = Annotated[float | None, typer.Option(help="The least mean reward.")]
RewardMax = Annotated[float | None, typer.Option(help="The largest mean reward.")]
StdMin = Annotated[float | None, typer.Option(help="The least deviation of its rewards.")]
Order = Annotated[_Sort | None, typer.Option(help="By step, mean reward, or deviation (widest).")]
Limit = Annotated[int | None, typer.Option(min=1, help="The most groups; a list has 20.")]
After = Annotated[str | None, typer.Option(help="The next page: what the one before it named.")]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="A folder for drawings of all graphs.")
]


def rollouts(
    run: Run,
    step: Step = None,
    last: Last = False,
    group: GroupId = None,
    state: State = None,
    status: Status = None,
    predicate: Predicate = None,
    object_: ObjectName = None,
    text: Words = None,
    image: Image = None,
    version: PolicyVersion = None,
    truncated: Truncated = False,
    reward_min: RewardMin = None,
    reward_max: RewardMax = None,
    std_min: StdMin = None,
    sort: Order = None,
    limit: Limit = None,
    after: After = None,
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """A run's groups: a list of what fits, newest first; or, of a step, answers with rewards.

    Example: sgg-rl rollouts runs/demo --status invalid_json --sort lowest
    """
    from cli.rollouts import draw_groups, find_groups, show_groups
    from services.run_folder.index_line import RolloutFilter

    wanted = RolloutFilter(
        step_from=step,
        step_to=step,
        reward_min=reward_min,
        reward_max=reward_max,
        std_min=std_min,
        state=state,
        status=status,
        predicate=predicate,
        object=object_,
        image=image,
        group_id=group,
        truncated=truncated or None,
        version=version,
        text=text,
    )
    found = find_groups(run, wanted, last=last, sort=sort, limit=limit, after=after)
    show_groups(found, as_json=as_json)
    if output is not None:
        drawn = draw_groups(found, output)
        print(f"drawings in {safe(str(output))}: {drawn}", file=sys.stderr)
