"""`sgg-rl rollouts`: the groups that a step was trained on."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from cli.options import AsJson
from cli.views.as_json import print_json
from cli.views.safe_text import safe
from launcher.views.terminal import SafeConsole
from services.errors import NotFoundError

if TYPE_CHECKING:
    from services.run_folder.records import RolloutRecord


def rollouts(
    run: Annotated[Path, typer.Argument(help="The run's folder, such as runs/demo.")],
    step: Annotated[int, typer.Option(min=0, help="From 0, as in metrics.jsonl.")],
    group: Annotated[
        str | None, typer.Option(help="This group with its whole texts, such as demo-e0-r9.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """The groups of a step: each completion with its rewards; one group in full with --group.

    Example: sgg-rl rollouts runs/demo --step 3 --group demo-e0-r9
    """
    from services.run_folder.records import read_rollouts

    records = read_rollouts(run, step)
    if not records:
        raise NotFoundError(f"no groups of step {step} in {run / 'rollouts'}")
    chosen = [r for r in records if group in (None, r.rollout.group_id)]
    if not chosen:
        names = ", ".join(r.rollout.group_id for r in records)
        raise NotFoundError(f"step {step} has no group {group}; it has {names}")
    if as_json:
        print_json(chosen)
        return
    console = SafeConsole()
    for record in chosen:
        console.print(group_view(record, whole=group is not None))


def group_view(record: "RolloutRecord", *, whole: bool) -> Group:
    """A group as a person reads it.

    Args:
        record: The group.
        whole: With its prompt and every text, not only the numbers.
    """
    versions = sorted(
        {s.policy_version for c in record.rollout.completions for s in c.policy_versions}
    )
    head = f"{record.rollout.group_id}  step {record.step}  row {record.index}  versions {versions}"
    trace = f"  trace {record.trace_id}" if record.trace_id else ""
    texts = [*_prompt(record), *_completions(record)] if whole else []
    return Group(Text(head + trace, style="bold"), _numbers(record), *texts, Text())


def _numbers(record: "RolloutRecord") -> Table:
    table = Table(box=box.SIMPLE, show_edge=False)
    for name in ("#", "reward", "advantage", "tokens"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("ended by", "status", "terms"):
        table.add_column(name, overflow="fold")
    rows = zip(record.rollout.completions, record.rewards, record.advantages, strict=True)
    for i, (completion, reward, advantage) in enumerate(rows):
        table.add_row(
            str(i),
            f"{reward.total:.3f}",
            f"{advantage:+.3f}",
            str(len(completion.token_ids)),
            completion.finish_reason,
            Text(reward.status, style="green" if reward.status == "ok" else "red"),
            "  ".join(f"{term} {value:.2f}" for term, value in reward.breakdown.items()),
        )
    return table


def _prompt(record: "RolloutRecord") -> Iterator[Text]:
    if record.prompt is None:
        return
    for message in record.prompt.messages:
        yield Text(f"\n{message.role}", style="bold")
        parts = (part.text if part.type == "text" else "<image>" for part in message.content)
        yield _lines("\n".join(parts))
    for image in record.prompt.images:
        yield Text(f"image {image.sha256}, {image.num_bytes} bytes", style="dim")


def _completions(record: "RolloutRecord") -> Iterator[Text]:
    for i, completion in enumerate(record.rollout.completions):
        yield Text(f"\ncompletion {i}", style="bold")
        yield _lines(completion.text)


def _lines(text: str) -> Text:
    """Each line made harmless: a model may write anything."""
    return Text("\n".join(safe(line) for line in text.splitlines()))
