"""Runs beside each other: their curves, the settings that differ, and their held-out images."""

from typing import Annotated

from fastapi import Query, Request, Response

from console.heldout import compare_runs
from console.reading.charts import COMPARED
from console.reading.settings import differing
from console.reading.state import read_config
from console.runs import Run, RunsOfConsole
from console.web import page_router, render
from evaluation.report.changes import compared_sections
from services.errors import InvalidInputError, SggError

router = page_router()
_MOST = 8
"""Colours that can be told apart."""
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
    )


@router.get("/compare/heldout")
def heldout(request: Request, runs: RunsOfConsole, names: Names = []) -> Response:  # noqa: B006
    """The paired comparison of two runs' held-out answers, a part of the page: it takes seconds."""
    first, second = _chosen(runs, names)[:2]
    compared, sections, problem = None, {}, None
    try:
        compared = compare_runs(first, second)
        sections = compared_sections(compared)
    except (SggError, OSError) as error:
        problem = str(error)
    return render(
        request, "compare/heldout.html", compared=compared, sections=sections, problem=problem
    )


def _chosen(runs: RunsOfConsole, names: list[str]) -> list[Run]:
    chosen = [runs.named(name) for name in dict.fromkeys(names)]
    if not 2 <= len(chosen) <= _MOST:
        raise InvalidInputError(f"tick two to {_MOST} runs to see them beside each other")
    return chosen
