"""What an evaluation prints: everything that decides, in 80 columns."""

from collections.abc import Iterable, Mapping, Sequence

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from cli.views.safe_text import safe
from evaluation.published import PublishedTable, published_tables
from evaluation.report.tables import OBJECT_MEASURES
from evaluation.result import AP_METRICS, PROTOCOLS, EvaluationResult, Problem, Protocol
from evaluation.scoring.compare import Comparison, Difference, PredicateChange

_SHORT = {"recall": "R", "mean_recall": "mR", "zero_shot_recall": "zR"}
_ANSWERS = {
    "failure_rate": "failures",
    "unconstrained_failure_rate": "failures, free decoding",
    "relations_per_image": "relations an image",
    "reference_relations_per_image": "relations, reference",
    "objects_per_image": "objects an image",
    "reference_objects_per_image": "objects, reference",
    "tokens_per_image": "tokens an image",
    "duplicate_objects": "objects that repeat one",
    "duplicate_relations": "relations that repeat one",
}
_TASKS = {
    "sgg": "",
    "det": "task det: objects with boxes, no relations\n",
    "cls": "task cls: triplets of names, whatever their boxes\n",
}
NONE = "-"


def result_view(result: EvaluationResult) -> Group:
    """The evaluation as a person reads it."""
    shown = [protocol for protocol in PROTOCOLS[:2] if protocol in result.protocols]
    counts = {p: f"{p}, {result.protocols[p]['num_images']:,.0f} images" for p in shown}
    tables = [_protocols(result, counts)] if result.protocols else []
    tables += [_protocols(result, {"r1-sgg": "r1-sgg"})] if "r1-sgg" in result.protocols else []
    tables += [_objects_and_answers(result)]
    published = published_tables(result.inputs.get("vocabulary")) if result.task == "sgg" else []
    tables += [_published(result, table) for table in published if table.fits(result)]
    lines = [_counts("images without a graph", result.failures)] if result.failures else []
    lines += [_mapped(name, shares) for name, shares in result.mapping.items()]
    lines += problem_lines(result.problem_counts, result.problems)
    spaced = (part for table in tables for part in (Text(), table))
    return Group(Text(_head(result), style="bold"), *spaced, *([Text()] if lines else []), *lines)


def metric_label(metric: str) -> str:
    """`ng_mean_recall@20` as ng-mR@20."""
    name, at, k = metric.removeprefix("ng_").partition("@")
    pooled = " pooled" if name.endswith("_pooled") else ""
    name = name.removesuffix("_pooled")
    short = _SHORT.get(name) or name.replace("_", " ").replace("f1", "F1").replace("iou", "IoU")
    return ("ng-" if metric.startswith("ng_") else "") + short + at + k + pooled


def percent(value: float | None) -> str:
    """A share in percent."""
    return NONE if value is None else f"{100 * value:.2f}"


def with_interval(value: float | None, interval: tuple[float, float] | None) -> str:
    """A share and its interval, in percent."""
    if value is None or interval is None:
        return percent(value)
    return f"{percent(value)} [{percent(interval[0])}, {percent(interval[1])}]"


def problem_lines(counts: Mapping[str, int], problems: Iterable[Problem]) -> list[Text]:
    """One line for each kind, with the first of it."""
    first: dict[str, Problem] = {}
    for problem in problems:
        first.setdefault(problem.kind, problem)
    lines = [Text("problems in the input", style="yellow")] if counts else []
    for kind, count in counts.items():
        lines.append(Text(safe(f"  {kind} {count:,}; first: {_where(first[kind])}")))
    return lines


def plain_table(*columns: str) -> Table:
    """Without lines; the first column is text, the others are numbers."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0), show_edge=False)
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number else "left", overflow="fold")
    return table


def _where(problem: Problem) -> str:
    line = "" if problem.line is None else f":{problem.line}"
    image = "" if problem.image_id is None else f" (image {problem.image_id})"
    return f"{problem.file}{line}{image}: {problem.detail}"


def _head(result: EvaluationResult) -> str:
    counted = result.protocols.get("strict", {}).get("num_images")
    relations = "" if counted is None else f", {counted:,.0f} with relations"
    return (
        f"{safe(result.name)} on {safe(result.split)}: {result.num_images:,} images{relations}\n"
        f"{_TASKS[result.task]}in percent, with 95 % intervals by bootstrap over images"
    )


def _protocols(result: EvaluationResult, columns: Mapping[Protocol, str]) -> Table:
    """The metrics of protocols beside each other, under these headings."""
    table = plain_table(result.split, *columns.values())
    for metric in dict.fromkeys(m for p in columns for m in result.protocols[p]):
        if metric != "num_images":
            table.add_row(metric_label(metric), *(_cell(result, p, metric) for p in columns))
    return table


def _cell(result: EvaluationResult, protocol: Protocol, metric: str) -> str:
    value = result.protocols[protocol].get(metric)
    return with_interval(value, result.intervals[protocol].get(metric))


def _objects_and_answers(result: EvaluationResult) -> Table:
    title = "objects and answers" if result.objects else "answers"
    table = plain_table(result.split, title)
    for name, value in result.objects.items():
        table.add_row(_object_label(name), with_interval(value, result.object_intervals.get(name)))
    for name, label in _ANSWERS.items():
        value, interval = result.answers.get(name), result.answer_intervals.get(name)
        if name in result.answers and not name.endswith("per_image"):
            table.add_row(label, with_interval(value, interval))
        elif value is not None:
            table.add_row(label, f"{value:,.2f}")
    for kind, found in result.confidence.items():
        table.add_row(f"scores of {kind}: calibration error", percent(found.calibration_error))
        table.add_row("  area under risk and coverage", percent(found.risk_coverage_area))
    return table


def _object_label(name: str) -> str:
    """With or without `object_` before it."""
    name = name.removeprefix("object_")
    return OBJECT_MEASURES[name] if name in AP_METRICS else f"object {OBJECT_MEASURES[name]}"


def _published(result: EvaluationResult, published: PublishedTable) -> Table:
    """The rows of a paper's table below ours, which is by the same protocol."""
    table = plain_table(published.protocol, "failures", "COCO AP50", "R", "mR")
    table.title = published.title
    table.title_justify, table.title_style = "left", ""
    ours, answers, objects = result.protocols["sgb"], result.answers, result.objects
    values = [answers["failure_rate"], objects["coco_ap50"]]
    values += [ours["recall@100"], ours["mean_recall@100"]]
    table.add_row(f"{result.name} on {result.split} (@100)", *map(percent, values), style="bold")
    for row in published.rows:
        numbers = row.failure_rate, row.ap50, row.recall, row.mean_recall
        table.add_row(row.label, *map(percent, numbers))
    return table


def _counts(title: str, counts: Mapping[str, int]) -> Text:
    return Text(safe(f"{title}: " + ", ".join(f"{name} {n:,}" for name, n in counts.items())))


def _mapped(name: str, shares: Mapping[str, float]) -> Text:
    """Where the predicted names are in the vocabulary, step by step."""
    parts = ", ".join(f"{step} {percent(share)}" for step, share in shares.items())
    return Text(f"predicted {name} in the vocabulary, %: {parts}")


def comparison_view(compared: Comparison) -> Group:
    """What the second has over the first, and how sure that is."""
    first, second = compared.first, compared.second
    head = f"{safe(second.name)} against {safe(first.name)}: {compared.num_images:,} images\n"
    if any(compared.num_left_out):
        only = "; {:,} images only in the first and {:,} only in the second are left out"
        head = head.rstrip() + only.format(*compared.num_left_out) + "\n"
    head += "in percent, paired bootstrap over images; * where 95 % intervals leave out 0"
    tables = [
        _differences(compared, protocol)
        for protocol in (*PROTOCOLS, None)
        if protocol is None or protocol in second.protocols
    ]
    spaced = (part for table in tables for part in (Text(), table))
    if second.task == "det":
        return Group(Text(head, style="bold"), *spaced)
    at = "@100" if second.task == "sgg" else ""
    lines = [Text(f"strict recall{at} by predicate, greatest changes")]
    lines += [_change_line(change) for change in _greatest(compared.predicates)]
    return Group(Text(head, style="bold"), *spaced, Text(), *lines)


def _differences(compared: Comparison, protocol: Protocol | None) -> Table:
    table = plain_table(protocol or "objects, answers", "first", "second", "difference", "p")
    for difference in compared.differences:
        if difference.protocol == protocol:
            table.add_row(*_difference_cells(difference))
    return table


def _difference_cells(d: Difference) -> tuple[str, ...]:
    scale = 1.0 if d.metric.endswith("per_image") else 100.0
    if d.protocol:
        label = metric_label(d.metric)
    else:
        label = _ANSWERS.get(d.metric) or _object_label(d.metric)
    values = [NONE if v is None else f"{scale * v:.2f}" for v in (d.first, d.second)]
    if d.difference is None:
        return label, *values, NONE, NONE
    difference = f"{scale * d.difference:+.2f}"
    if d.interval is None or d.p_value is None:
        return label, *values, difference, NONE
    low, high = (scale * end for end in d.interval)
    sure = "*" if low > 0 or high < 0 else " "
    return label, *values, f"{difference} [{low:+.2f}, {high:+.2f}]{sure}", f"{d.p_value:.3f}"


def _greatest(changes: Sequence[PredicateChange]) -> list[PredicateChange]:
    """The five greatest losses and gains."""
    losses = [change for change in changes[:5] if change.difference < 0]
    return losses + [change for change in changes[-5:] if change.difference > 0]


def _change_line(change: PredicateChange) -> Text:
    return Text(
        f"  {100 * change.difference:+7.2f}  {safe(change.predicate)} "
        f"({percent(change.first)} to {percent(change.second)}, {change.num_reference:,} times)"
    )
