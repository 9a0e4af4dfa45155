"""Runs beside each other: their curves, the settings that differ, and their held-out images."""

from typing import Annotated, Any, get_args

from fastapi import Query, Request, Response

from console.heldout import compare_runs
from console.reading.charts import COMPARED, Source
from console.reading.run import READERS
from console.reading.settings import differing
from console.reading.state import read_config
from console.runs import MOST_COMPARED, Run, RunsOfConsole
from console.web import copy_rule, page_router, render
from evaluation.report.changes import compared_sections
from services.errors import InvalidInputError, SggError

router = page_router()
_DRAWN = ("step", *(chart.keys[0] for chart in COMPARED))
Names = Annotated[list[str], Query(alias="run")]


@router.get("/compare")
def compare(request: Request, runs: RunsOfConsole, names: Names = []) -> Response:  # noqa: B006
    """The runs that `run` names, each once; the first is what the others are held against."""
    chosen = _chosen(runs, names)
    trees = [read_config(run.files)[0] for run in chosen]
    return render(
        request,
        "compare/page.html",
        chosen=chosen,
        charts=COMPARED,
        settings=differing(trees),
        **(_copied(chosen) if copy_rule(request) else {}),
    )


@router.get("/compare/heldout")
def heldout(request: Request, runs: RunsOfConsole, names: Names = []) -> Response:  # noqa: B006
    """The paired comparison of two runs' held-out answers, a part of the page: it takes seconds."""
    return render(request, "compare/heldout.html", **_paired(*_chosen(runs, names)[:2]))


def _paired(first: Run, second: Run) -> dict[str, Any]:
    try:
        compared = compare_runs(first, second)
    except (SggError, OSError) as error:
        return {"compared": None, "sections": {}, "problem": str(error)}
    return {"compared": compared, "sections": compared_sections(compared), "problem": None}


def _copied(chosen: list[Run]) -> dict[str, Any]:
    """What the page asks for when it is served."""
    paired = [_paired(chosen[0], other) for other in chosen[1:]]
    return {"curves": [_curves(run) for run in chosen], "paired": paired}


def _curves(run: Run) -> dict[str, Any]:
    points = READERS.of(run).points()
    return {
        source: {"mean": {key: points[source]["mean"].get(key, []) for key in _DRAWN}}
        for source in get_args(Source)
    }


def _chosen(runs: RunsOfConsole, names: list[str]) -> list[Run]:
    chosen = [runs.named(name) for name in dict.fromkeys(names)]
    if not 2 <= len(chosen) <= MOST_COMPARED:
        raise InvalidInputError(f"tick two to {MOST_COMPARED} runs to see them beside each other")
    return chosen
