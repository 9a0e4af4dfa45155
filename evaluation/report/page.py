"""`report.html`: an evaluation as one file that opens from disk, without a network."""

import os
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from markupsafe import Markup

from evaluation.published import published_tables
from evaluation.reading.lines import GraphLine
from evaluation.report import charts, tables
from evaluation.report.asking import asked_in_words
from evaluation.report.browser import PictureOf, browser_data, json_block
from evaluation.report.changes import change_chart, compared_sections
from evaluation.report.pictures import data_uri
from evaluation.report.template import BROWSER, render
from evaluation.result import PROTOCOLS, EvaluationResult, ImageResult
from evaluation.scoring.compare import Comparison

ImageBytes = Callable[[str], bytes | None]
"""Image id to the encoded picture; None where there is none"""

Image = TypeVar("Image", bound=ImageResult | GraphLine)

SEED = 0
"""Decides which images are shown."""


def write_report(
    result: EvaluationResult,
    folder: Path,
    image_bytes: ImageBytes,
    compared: Comparison | None = None,
    num_images: int = 100,
) -> Path:
    """Write `folder/report.html`.

    Args:
        result: The evaluation's.
        folder: Exists.
        image_bytes: For the browser.
        compared: `result` beside another one, which the browser shows too.
        num_images: At most so many are in the browser; chosen by `choose_images`.
    """
    evaluations = [compared.first, compared.second] if compared else [result]
    sides = [(each.name, {image.image_id: image for image in each.images}) for each in evaluations]
    shared = [i for i in result.images if all(i.image_id in by_id for _, by_id in sides)]
    failed = {i.image_id for _, by_id in sides for i in by_id.values() if i.status != "ok"}
    chosen, how_chosen = choose_images(shared, num_images, failed)
    html = render(
        "report.html.jinja",
        ["tables.js", *BROWSER],
        **_predicate_words(result),
        result=result,
        compared=compared,
        change_sections=compared and compared_sections(compared),
        change_chart=compared and change_chart(compared.predicates),
        date=datetime.now(UTC).date().isoformat(),
        protocols=PROTOCOLS,
        tables=tables,
        published=published_tables(result.inputs.get("vocabulary")) if result.task == "sgg" else [],
        charts=_charts(result),
        **_setting_words(result),
        how_chosen=how_chosen,
        judged=True,
        browser=json_block(browser_data(chosen, sides, _embedded(image_bytes), result.task)),
    )
    file = folder / "report.html"
    draft = folder / f"report.{os.getpid()}.draft"  # somebody may read the report of a run
    draft.write_text(html, encoding="utf-8", errors="replace")  # half a surrogate pair in a name
    return draft.replace(file)


def _embedded(image_bytes: ImageBytes) -> PictureOf:
    return lambda image_id, size: data_uri(image_bytes(image_id), size)


def choose_images(
    images: Sequence[Image], num_images: int, failed: Collection[str]
) -> tuple[list[Image], str]:
    """A random sample, with failures as up to a third of it: never the best ones only.

    Args:
        images: All of the evaluation.
        num_images: At most so many are chosen.
        failed: Ids of failures; other ids may be among them.

    Returns:
        The chosen ones in their order, and a sentence that says how they were chosen.
    """
    if len(images) <= num_images:
        return list(images), f"All {len(images):,} images."
    bad = [i for i, image in enumerate(images) if str(image.image_id) in failed]
    good = [i for i, image in enumerate(images) if str(image.image_id) not in failed]
    num_good = min(len(good), num_images - min(len(bad), num_images // 3))
    num_bad = num_images - num_good
    rng = np.random.default_rng(SEED)
    drawn = [
        *rng.choice(good, num_good, replace=False).tolist(),
        *rng.choice(bad, num_bad, replace=False).tolist(),
    ]
    return [images[i] for i in sorted(drawn)], (
        f"{num_images:,} of {len(images):,} images, drawn at random (seed {SEED}): {num_bad:,} of "
        f"the {len(bad):,} without a predicted graph, {num_good:,} of the {len(good):,} others."
    )


def _setting_words(result: EvaluationResult) -> dict[str, Any]:
    flat = tables.flat_settings(result.settings)
    main = {name: flat[name] for name in tables.MAIN_SETTINGS if name in flat}
    others = {k: v for k, v in flat.items() if k not in main}
    asked = asked_in_words(result.settings)
    return {"main_settings": main, "settings": others, "asked": asked}


def _predicate_words(result: EvaluationResult) -> dict[str, Any]:
    rows = result.predicates
    trained = any(row.num_training is not None for row in rows)
    source = "the training split" if trained else "the reference (no training split was given)"
    by_names = result.task == "cls"
    at, lines = ("", "") if by_names else (" at 100", ", lines across them sgb")
    some = f" The first {charts.MAX_PREDICATES} of {len(rows)} are drawn."
    return {
        "predicate_protocols": [p for p in PROTOCOLS if any(p in row.recall for row in rows)],
        "trained": trained,
        "predicate_caption": (
            f"Recall{at} of each predicate, sorted by its frequency in {source}. Bars are "
            f"strict{lines}; dotted levels are the strict means of head, body and "
            f"tail, a third of the predicates each.{some * (len(rows) > charts.MAX_PREDICATES)}"
        ),
    }


def _charts(result: EvaluationResult) -> dict[str, Markup]:
    """Those that there is something for."""
    drawn: dict[str, Markup] = {}
    if result.predicates:
        drawn["predicates"] = charts.predicate_chart(result.predicates, result.groups)
    if any(result.failures.values()):
        drawn["failures"] = charts.reason_bars(result.failures, result.num_images)
    graphs = [(i.reference, i.predicted) for i in result.images if i.status == "ok"]
    if graphs:
        objects = [(len(r.objects), len(p.objects)) for r, p in graphs]
        relations = [(len(r.relations), len(p.relations)) for r, p in graphs]
        if result.task != "cls":
            drawn["objects"] = charts.count_chart(objects, "objects")
        if result.task != "det":
            drawn["relations"] = charts.count_chart(relations, "relations")
    good = [i.num_tokens for i in result.images if i.num_tokens is not None and i.status == "ok"]
    bad = [i.num_tokens for i in result.images if i.num_tokens is not None and i.status != "ok"]
    if any(found.bins for found in result.confidence.values()):
        drawn["calibration"] = charts.calibration_chart(result.confidence)
    if result.confidence:
        drawn["risk"] = charts.risk_chart(result.confidence)
    if good or bad:
        drawn["lengths"] = charts.length_chart(good, bad)
    return drawn
