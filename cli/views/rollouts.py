"""What `sgg-rl rollouts` shows: a page of groups, and groups with their completions."""

from collections.abc import Iterator
from itertools import zip_longest

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from cli.views.safe_text import safe
from services.printable import counted
from services.run_folder.index import IndexPage
from services.run_folder.index_line import IndexLine
from services.run_folder.records import RolloutRecord

_ID_WIDTH = 30


def page_view(page: IndexPage) -> Group:
    """Groups in a line each; it fits 80 columns."""
    table = Table(box=box.SIMPLE, show_edge=False, padding=(0, 1))
    table.add_column("group", overflow="fold", max_width=_ID_WIDTH)
    for name in ("step", "row"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for name in ("reward", "std", "failed", "cut"):
        table.add_column(name, justify="right", no_wrap=True)
    for line in page.lines:
        table.add_row(Text(safe(line.group_id, 200)), str(line.step), str(line.row), *_cells(line))
    return Group(table, *map(Text, remarks(page)))


def _cells(line: IndexLine) -> Iterator[Text | str]:
    state = line.state.replace("_", " ")
    yield Text(state, style="" if line.state == "trained" else "yellow")
    yield "-" if line.mean is None else f"{line.mean:.3f}"
    yield "-" if line.std is None else f"{line.std:.3f}"
    failed = sum(count for status, count in line.statuses.items() if status != "ok")
    yield Text(f"{failed}/{sum(line.statuses.values())}", style="red" if failed else "")
    yield str(line.truncated)


def remarks(page: IndexPage) -> Iterator[str]:
    """What is to be said below a page."""
    if not page.lines:
        yield f"no group fits, of {page.scanned:,} that were looked at"
    if page.cursor:
        yield f"more with --after={page.cursor}"
    if page.passed_over:
        lines = counted(page.passed_over, "line")
        yield f"{lines} of the index passed over: half written, damaged, or of a later release"


def group_view(record: RolloutRecord, *, whole: bool) -> Group:
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
    title = Text(safe(head + trace), style="bold")
    return Group(title, *_unused(record), _numbers(record), *texts, Text())


def _unused(record: RolloutRecord) -> Iterator[Text]:
    if record.state != "trained":
        why = f": {record.reason}" if record.reason else ""
        state = record.state.replace("_", " ")
        yield Text(safe(f"not trained on: {state}{why}"), style="yellow")


def _numbers(record: RolloutRecord) -> Table:
    table = Table(box=box.SIMPLE, show_edge=False)
    for name in ("#", "reward", "advantage", "tokens"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("ended by", "status", "terms"):
        table.add_column(name, overflow="fold")
    # A dead group may have no rewards.
    rows = zip_longest(record.rollout.completions, record.rewards, record.advantages)
    for i, (completion, reward, advantage) in enumerate(rows):
        terms = reward.breakdown.items() if reward else ()
        table.add_row(
            str(i),
            f"{reward.total:.3f}" if reward else "-",
            "-" if advantage is None else f"{advantage:+.3f}",
            str(len(completion.token_ids)),
            completion.finish_reason,
            _status(reward.status if reward else "-"),
            "  ".join(f"{term} {value:.2f}" for term, value in terms),
        )
    return table


def _status(status: str) -> Text:
    return Text(status, style={"ok": "green", "-": ""}.get(status, "red"))


def _prompt(record: RolloutRecord) -> Iterator[Text]:
    if record.prompt is None:
        return
    for message in record.prompt.messages:
        yield Text(f"\n{message.role}", style="bold")
        parts = (part.text if part.type == "text" else "<image>" for part in message.content)
        yield _lines("\n".join(parts))
    for image in record.prompt.images:
        yield Text(f"image {image.sha256}, {image.num_bytes} bytes", style="dim")


def _completions(record: RolloutRecord) -> Iterator[Text]:
    for i, completion in enumerate(record.rollout.completions):
        yield Text(f"\ncompletion {i}", style="bold")
        yield _lines(completion.text)


def _lines(text: str) -> Text:
    """Each line made harmless: a model may write anything."""
    return Text("\n".join(safe(line) for line in text.splitlines()))
