"""What `sgg-rl data inspect` shows and draws."""

import logging
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.markup import escape
from rich.table import Table

from cli.views.safe_text import safe
from launcher.views.terminal import SafeConsole
from scene_data.inspection import RARE, Inspection, NameStatistics
from scene_data.reading.images import check_image, image_bytes
from scene_data.reading.rows import RowError, read_graph, read_size
from scene_data.reading.sources import Rows
from scene_graph.drawing import draw_png
from services.errors import InvalidInputError, TooLargeError
from services.images import decode_image

logger = logging.getLogger(__name__)


def show(found: Inspection, name: str) -> None:
    """Print tables."""
    console = SafeConsole(highlight=False)
    console.print(f"[bold]{_plain(name)}[/bold]")
    console.print(_rows(found))
    if found.broken:
        console.print("Broken rows:")
        for line in found.broken:
            console.print(f"  {_plain(line, 160)}", soft_wrap=True)
        if (more := found.num_broken - len(found.broken)) > 0:
            console.print(f"  and {more:,} more")
    if found.num_rows > found.num_broken:
        console.print(_spreads(found))
    for title, names in (("Object names", found.objects), ("Predicates", found.predicates)):
        console.print(_names(title, names))


def draw_samples(rows: Rows, usable: NDArray[np.bool_], folder: Path, num: int) -> list[str]:
    """Write `sample-<row>.png` of rows spread over the usable ones; the log says which have none.

    Returns:
        The files' names.
    """
    places = np.flatnonzero(usable)
    chosen = places[np.linspace(0, len(places) - 1, min(num, len(places))).round().astype(int)]
    written = []
    for index in chosen.tolist():
        row = rows.row(index)
        try:
            data = image_bytes(row["image"])
            check_image(data, read_size(row))
            image = decode_image(data)
            picture = draw_png(read_graph(row)[0], *image.size, image)
        except (RowError, InvalidInputError, TooLargeError) as error:
            logger.warning("%s is not drawn: %s", rows.place(index), error)
            continue
        written.append(f"sample-{index}.png")
        (folder / written[-1]).write_bytes(picture)
    return written


def _rows(found: Inspection) -> Table:
    table = Table(box=box.SIMPLE, show_header=False, pad_edge=False)
    table.add_column(justify="right")
    table.add_column()
    always = ("rows", "usable", "broken")
    lines = [
        (found.num_rows, "rows"),
        (found.num_usable, "usable"),
        (found.num_broken, "broken"),
        *((number, f"  {_plain(reason)}") for reason, number in found.broken_by_reason.items()),
        (found.num_without_image, "without an image: not trained on"),
        (found.num_without_relationship, "without a relationship: not trained on for sgg and cls"),
        (found.num_repeated_ids, _repeated(found)),
        (found.num_turned, "turned upright by an EXIF orientation: boxes must be of that picture"),
        (found.num_boxes_outside, "boxes that reach over the image's edge"),
        *((number, f"{_plain(reason)}: dropped") for reason, number in found.dropped.items()),
    ]
    for number, text in lines:
        if number or text in always:
            table.add_row(f"{number:,}", text)
    table.add_row("", "every image was decoded" if found.images_checked else _unchecked(found))
    return table


def _repeated(found: Inspection) -> str:
    return f"with the image id of an earlier row: {_plain(', '.join(found.repeated_ids[:5]), 60)}"


def _unchecked(found: Inspection) -> str:
    return f"images were not decoded (--images does); {found.num_sized:,} of known size"


def _spreads(found: Inspection) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for name in ("mean", "min", "5 %", "median", "95 %", "max"):
        table.add_column(name, justify="right")
    for title, spread, digits, needs_size in (
        ("image width, pixels", found.width, 0, True),
        ("image height, pixels", found.height, 0, True),
        ("objects an image", found.objects_per_image, 1, False),
        ("relationships an image", found.relationships_per_image, 1, False),
        ("box area / image area", found.box_area, 4, True),
        ("box width / height", found.box_aspect, 2, True),
    ):
        if needs_size and not found.num_sized:
            continue
        values = (spread.mean, spread.min, spread.p5, spread.median, spread.p95, spread.max)
        table.add_row(title, *(f"{value:,.{digits}f}" for value in values))
    return table


def _names(title: str, names: NameStatistics) -> str:
    """A paragraph: counts, the most frequent names, and what is outside the vocabulary."""
    lines = [
        f"[bold]{title}[/bold]: {names.num_names:,} in {names.num_instances:,} instances; "
        f"{names.num_for_half:,} names make half of them, {names.num_for_90_percent:,} make 90 %; "
        f"{names.num_rare:,} have fewer than {RARE} instances",
        f"  {_listed(names.top)}",
    ]
    if names.num_outside is not None:
        share = names.num_outside / max(names.num_instances, 1)
        outside = f": {_listed(names.top_outside)}" if names.top_outside else ""
        lines.append(
            f"  outside the vocabulary: {names.num_outside:,} instances ({share:.1%}){outside}"
        )
        unused = f" ({', '.join(names.unused[:10])}…)" if names.unused else ""
        lines.append(f"  names of the vocabulary without an instance: {len(names.unused)}{unused}")
    return "\n".join(lines) + "\n"


def _listed(counts: list[tuple[str, int]]) -> str:
    return ", ".join(f"{_plain(name, 40)} {number:,}" for name, number in counts) or "none"


def _plain(text: str, width: int | None = None) -> str:
    """Text of the dataset, without effect on terminal or markup."""
    return escape(safe(text, width))
