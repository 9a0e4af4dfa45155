"""Held-out images: the report as a live page."""

from typing import Any

from fastapi import Request, Response

from console.charts import value_chart
from console.groups.pictures import as_jpeg
from console.groups.rules import rules_of
from console.heldout import Answered, images_data, read_answers, read_scores
from console.runs import NamedRun, Run
from console.web import page_router, render
from evaluation.report import tables
from evaluation.report.browser import json_block
from evaluation.report.changes import change_chart
from services.errors import NotFoundError, SggError

router = page_router()


@router.get("/runs/{run}/heldout")
def heldout(request: Request, run: NamedRun) -> Response:
    """Scores before, now and at their best; then predicates, and images, worst losses first."""
    rules = rules_of(run)
    try:
        answered, problem = read_answers(run), ""
    except (SggError, OSError) as error:
        answered, problem = None, str(error)
    shown = _scores(run, rules.task) | (_images(run, answered) if answered else {})
    return render(
        request,
        "heldout.html",
        run=run,
        tab="Held-out",
        answered=answered,
        problem=problem,
        rules=rules,
        tables=tables,
        judged=True,
        **shown,
    )


@router.get("/runs/{run}/heldout/scores")
def scores(request: Request, run: NamedRun) -> Response:
    """The scores alone, which the page asks for again when the run has more."""
    task = rules_of(run).task
    return render(request, "heldout_scores.html", run=run, tables=tables, **_scores(run, task))


@router.get("/runs/{run}/heldout/picture")
def picture(run: NamedRun, image: str) -> Response:
    """A held-out picture, as an upright JPEG."""
    answered = read_answers(run)
    data = answered.image_bytes(image) if answered else None
    if data is None:
        raise NotFoundError(f"the picture of {image[:100]!r} is gone from the held-out dataset")
    headers = {"Cache-Control": "private, max-age=3600"}
    return Response(as_jpeg(data), media_type="image/jpeg", headers=headers)


def _scores(run: Run, task: str) -> dict[str, Any]:
    found = read_scores(run, task)
    if found is None:
        return {"scores": None, "chart": ""}
    name = found.main.replace("_", " ")
    points = [(step, 100 * a, 100 * b, 100 * c) for step, a, b, c in found.points]
    return {
        "scores": found,
        "chart": value_chart(points, f"Held-out {name} by step", f"{name} (%)"),
    }


def _images(run: Run, answered: Answered) -> dict[str, Any]:
    data, how_chosen = images_data(run, answered)
    compared = answered.compared
    return {
        "result": answered.result,
        "compared": compared,
        "change_chart": change_chart(compared.predicates) if compared else "",
        "browser": json_block(data),
        "how_chosen": how_chosen,
    }
