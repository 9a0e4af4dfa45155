"""Held-out images: the report as a live page."""

from typing import Any

from fastapi import Request, Response

from console.charts import value_chart
from console.groups.pictures import as_jpeg
from console.groups.rules import rules_of
from console.heldout import ANSWERS, Answered, images_data, read_scores
from console.runs import NamedRun, Run
from console.web import copy_rule, page_router, render
from evaluation.report import tables
from evaluation.report.browser import json_block
from evaluation.report.changes import change_chart
from services.errors import NotFoundError, SggError

router = page_router()
_PATIENCE_S = 0.3
"""The page waits so long for answers to be judged, and says then that it goes on"""


@router.get("/runs/{run}/heldout")
def heldout(request: Request, run: NamedRun) -> Response:
    """Scores before, now and at their best; then predicates, and images, worst losses first."""
    rules = rules_of(run)
    job, answered, problem = ANSWERS.of(run), None, ""
    try:
        answered = job.result(None if copy_rule(request) else _PATIENCE_S) if job else None
    except TimeoutError:
        pass  # the page asks `judged` until it is done
    except (SggError, OSError) as error:
        problem = str(error)
    shown = _scores(run, rules.task) | (_images(run, answered) if answered else {})
    return render(
        request,
        "heldout/heldout.html",
        run=run,
        tab="Held-out",
        answered=answered,
        problem=problem,
        waits=job is not None and not job.done(),
        rules=rules,
        tables=tables,
        judged=True,
        **shown,
    )


@router.get("/runs/{run}/heldout/scores")
def scores(request: Request, run: NamedRun) -> Response:
    """The scores alone, which the page asks for again when the run has more."""
    task = rules_of(run).task
    return render(request, "heldout/scores.html", run=run, tables=tables, **_scores(run, task))


@router.get("/runs/{run}/heldout/judged")
def is_judged(run: NamedRun) -> Response:
    """Has the page load again once the answers are judged."""
    job = ANSWERS.of(run)
    waits = job is not None and not job.done()
    return Response(status_code=204, headers={} if waits else {"HX-Refresh": "true"})


@router.get("/runs/{run}/heldout/picture")
def picture(run: NamedRun, image: str) -> Response:
    """A held-out picture, as an upright JPEG."""
    job = ANSWERS.of(run)
    data = job.result().image_bytes(image) if job else None
    if data is None:
        raise NotFoundError(f"the picture of {image[:100]!r} is gone from the held-out dataset")
    headers = {"Cache-Control": "private, max-age=3600"}
    return Response(as_jpeg(data), media_type="image/jpeg", headers=headers)


def _scores(run: Run, task: str) -> dict[str, Any]:
    found = read_scores(run, task)
    if found is None:
        return {"scores": None, "chart": ""}
    points = [(step, 100 * a, 100 * b, 100 * c) for step, a, b, c in found.points]
    return {
        "scores": found,
        "chart": value_chart(points, f"Held-out {found.label} by step", f"{found.label} (%)"),
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
