"""`report.html`: an evaluation as one file that opens from disk, without a network."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from evaluation.report import charts, tables
from evaluation.report.browser import browser_data, json_block
from evaluation.report.selection import choose_images
from evaluation.result import PROTOCOLS, EvaluationResult, ImageResult

_HERE = Path(__file__).parent


def write_report(
    result: EvaluationResult,
    folder: Path,
    image_bytes: Callable[[str], bytes | None],
    num_images: int = 100,
) -> Path:
    """Write `folder/report.html`.

    Args:
        result: Of the evaluation.
        folder: Exists.
        image_bytes: Image id to the encoded picture; None where there is none.
        num_images: At most so many are in the browser; chosen by `choose_images`.
    """
    sides = {result.name: {image.image_id: image for image in result.images}}

    def failed(image: ImageResult) -> bool:
        return any(side[image.image_id].status != "ok" for side in sides.values())

    chosen, how_chosen = choose_images(result.images, num_images, failed)
    html = (
        _environment()
        .get_template("report.html.jinja")
        .render(
            _words(result),
            result=result,
            date=datetime.now(UTC).date().isoformat(),
            protocols=PROTOCOLS,
            tables=tables,
            charts=_charts(result),
            how_chosen=how_chosen,
            browser=json_block(browser_data(chosen, sides, image_bytes)),
            style=_part("report.css"),
            scripts=[_part(name) for name in ("tables.js", "drawing.js", "browser.js")],
        )
    )
    file = folder / "report.html"
    file.write_text(html, encoding="utf-8", errors="replace")  # half a surrogate pair in a name
    return file


def _words(result: EvaluationResult) -> dict[str, Any]:
    """What the template says besides the numbers."""
    rows = result.predicates
    shared = [p for p in PROTOCOLS if any(p in row.recall for row in rows)]
    trained = any(row.num_training is not None for row in rows)
    source = "the training split" if trained else "the reference (no training split was given)"
    reasons = [tables.FAILURES.get(name, name) for name in result.failures]
    cut = f" The first {charts.MAX_PREDICATES} of {len(rows)}." * (
        len(rows) > charts.MAX_PREDICATES
    )
    return {
        "settings": tables.flat_settings(result.settings),
        "mapping_steps": list(
            dict.fromkeys(k for shares in result.mapping.values() for k in shares)
        ),
        "predicate_protocols": shared,
        "trained": trained,
        "failure_words": "; ".join(reasons),
        "predicate_caption": (
            f"Recall at 100 of each predicate, sorted by its frequency in {source}: bars are strict, "
            f"lines across them sgb; dotted levels are strict means of head, body and tail.{cut}"
        ),
    }


def _charts(result: EvaluationResult) -> dict[str, Markup]:
    """Those that there is something for."""
    drawn: dict[str, Markup] = {}
    if result.predicates:
        drawn["predicates"] = charts.predicate_chart(result.predicates, result.groups)
    if any(result.failures.values()):
        drawn["failures"] = charts.reason_bars(result.failures, result.num_images)
    for noun in ("objects", "relations"):
        if pairs := [
            (len(getattr(image.reference, noun)), len(getattr(image.predicted, noun)))
            for image in result.images
            if image.status == "ok"
        ]:
            drawn[noun] = charts.count_chart(pairs, noun)
    good = [i.num_tokens for i in result.images if i.num_tokens is not None and i.status == "ok"]
    bad = [i.num_tokens for i in result.images if i.num_tokens is not None and i.status != "ok"]
    if good or bad:
        drawn["lengths"] = charts.length_chart(good, bad)
    return drawn


def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )


def _part(name: str) -> Markup:
    """A file of ours, which goes into the page as it is."""
    return Markup((_HERE / name).read_text(encoding="utf-8"))  # noqa: S704
