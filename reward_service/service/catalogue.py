"""What `GET /v1/rubrics` lists."""

from typing import get_args

from reward_service.rubrics import RUBRICS
from reward_service.scoring import make_scorer
from reward_service.terms import TERMS
from services.errors import InvalidInputError
from services.schemas.rewards import Task
from services.schemas.rubrics import Rubric, RubricDescription, RubricList, TermDescription

TASKS: tuple[Task, ...] = get_args(Task)


def list_rubrics() -> RubricList:
    """Every rubric that ships and every term."""
    return RubricList(
        rubrics=[_describe(rubric) for rubric in RUBRICS.values()],
        terms={
            name: TermDescription(
                formula=term.formula, tasks=[task for task in TASKS if task in term.tasks]
            )
            for name, term in TERMS.items()
        },
    )


def _describe(rubric: Rubric) -> RubricDescription:
    scorers = {}
    for task in TASKS:
        try:
            scorers[task] = make_scorer(rubric.name, task)
        except InvalidInputError:  # it has no term about this task's graphs
            continue
    return RubricDescription(
        rubric=rubric.model_dump(mode="json"),
        rubric_version=next(iter(scorers.values())).rubric_version,
        formulas={name: TERMS[name].formula for name in rubric.terms},
        max_total={task: scorer.max_total for task, scorer in scorers.items()},
    )
