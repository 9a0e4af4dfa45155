"""All about one completion, for a terminal of 80 columns and up."""

from collections.abc import Iterable, Iterator, Sequence

from rich.cells import cell_len
from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from cli.views.safe_text import safe
from reward_service.explain.dropped_parts import DroppedPart, Failure
from reward_service.explain.explainer import Explanation
from reward_service.explain.verdicts import MissedObject, MissedTriplet, ObjectLine, TripletLine
from reward_service.explain.words import arrow_text, object_reason, triplet_reason

_NAME_WIDTH = 40
_PART_WIDTH = 200
_AROUND = 36
"""Characters on each side of the place where a text breaks: fits 80 columns."""
_COLOURS = {"hit": "green", "alike": "green", "unannotated": "yellow"}


def breakdown(name: str, e: Explanation) -> Iterator[RenderableType]:
    """What to print, part by part."""
    yield _head(name, e)
    if e.failure:
        yield from _failure(e.failure)
    else:
        if e.terms:
            yield _terms(e)
        if e.format_faults:
            yield _indented(Text(f"format: {'; '.join(e.format_faults)}"))
        if e.task != "cls":
            yield from _objects(e)
        if e.task != "det":
            yield from _triplets(e)
    yield from _dropped("Dropped from the completion", e.dropped)
    yield from _dropped("Dropped from the reference", e.reference_dropped)


def _head(name: str, e: Explanation) -> Text:
    text = Text(safe(name, _NAME_WIDTH), style="bold")
    text.append(f": {e.status}{' (truncated)' if e.truncated else ''}")
    if e.total is None:
        return text.append(", only read: there is no reference")
    return text.append(f", total {e.total:.3f} of {e.max_total:g}")


def _failure(failure: Failure) -> Iterator[RenderableType]:
    yield _indented(Text(failure.message, style="red"))
    if place := failure.place:
        before, after = safe(place.before)[-_AROUND:], safe(place.after)[:_AROUND]
        text = Text(f"line {place.line}, column {place.column}:\n{before}{after}\n")
        yield _indented(text.append(" " * cell_len(before) + "^", style="red"))


def _terms(e: Explanation) -> RenderableType:
    table = _table("term", ">value", ">weight", ">value * weight")
    for term in e.terms:
        value, adds = f"{term.value:.3f}", f"{term.contribution:.3f}"
        table.add_row(term.name, value, f"{term.weight:g}", adds)
    return _indented(table)


def _objects(e: Explanation) -> Iterator[RenderableType]:
    if e.total is None:
        yield _title(f"Objects: {len(e.objects)} read")
        yield from _list(f"{_name(item.id)} {_box(item.bbox)}" for item in e.objects)
        return
    table = _table("predicted", "reference", ">IoU", ">name", "verdict")
    for item in e.objects:
        table.add_row(
            _name(item.id),
            _name(item.reference or "-"),
            "-" if item.iou is None else f"{item.iou:.2f}",
            _same_name(item),
            _verdict(item.verdict, object_reason(item)),
        )
    yield from _compared("Objects", e.objects, table, [*map(_missed_object, e.missed_objects)])


def _triplets(e: Explanation) -> Iterator[RenderableType]:
    if e.total is None:
        yield _title(f"Relationships: {len(e.triplets)} read")
        yield from _list(_names(line.triplet) for line in e.triplets)
        return
    table = _table("predicted", "verdict")
    for line in e.triplets:
        table.add_row(_names(line.triplet), _verdict(line.verdict, triplet_reason(line, _name)))
    missed = [*map(_missed_triplet, e.missed_triplets)]
    yield from _compared("Relationships", e.triplets, table, missed)


def _compared(
    title: str, lines: Sequence[ObjectLine | TripletLine], table: Table, missed: Sequence[str]
) -> Iterator[RenderableType]:
    hits = sum(line.verdict == "hit" for line in lines)
    found = f"{hits} of {hits + len(missed)} in the reference hit"
    yield _title(f"{title}: {len(lines)} predicted; {found}")
    if lines:
        yield _indented(table)
    yield from _list(missed, "missed in the reference:")


def _dropped(title: str, parts: Sequence[DroppedPart]) -> Iterator[RenderableType]:
    if parts:
        yield _title(f"{title}: {len(parts)}")
    for part in parts:
        text = Text(f"{part.where}[{part.index}] ")
        text.append(part.reason, style="yellow").append(f": {safe(part.why, _PART_WIDTH)}")
        yield _indented(text)
        yield _indented(Text(safe(part.text, _PART_WIDTH), style="dim"), 4)


def _same_name(item: ObjectLine) -> str:
    if item.similarity is None:
        return "-"
    return "same" if item.verdict in ("hit", "box_off") else f"{item.similarity:.2f}"


def _missed_object(item: MissedObject) -> str:
    matched = f", matched with {_name(item.matched)}" if item.matched else ""
    return f"{_name(item.id)} {_box(item.bbox)}{matched}"


def _missed_triplet(item: MissedTriplet) -> str:
    ends = " and ".join(map(_name, item.missed_ends))
    return _names(item.triplet) + (f" ({ends} missed, too)" if ends else "")


def _verdict(verdict: str | None, why: str) -> Text:
    text = Text((verdict or "").replace("_", " "), style=_COLOURS.get(verdict or "", "red"))
    return text.append(f": {why}" if why else "", style="default")


def _name(text: str) -> str:
    return safe(text, _NAME_WIDTH)


def _names(triplet: tuple[str, str, str]) -> str:
    return arrow_text(triplet, _name)


def _box(bbox: Sequence[float]) -> str:
    return f"[{', '.join(f'{c:g}' for c in bbox)}]"


def _title(text: str) -> Text:
    return Text(f"\n{text}", style="bold")


def _list(lines: Iterable[str], title: str = "") -> Iterator[RenderableType]:
    items = [*lines]
    if items and title:
        yield _indented(Text(title))
    if items:
        yield _indented(Text("\n".join(items)), 4 if title else 2)


def _table(*columns: str) -> Table:
    """`>` before a column's name puts it to the right."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in columns:
        table.add_column(
            Text(name.lstrip(">")),
            justify="right" if name.startswith(">") else "left",
            overflow="fold",
        )
    return table


def _indented(what: RenderableType, by: int = 2) -> RenderableType:
    return Padding(what, (0, 0, 0, by), expand=False)
