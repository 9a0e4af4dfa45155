"""What `GET /v1/rubrics` lists, and the worked example of `POST /v1/rewards`."""

from typing import Any

from reward_service.rubrics import RUBRICS
from reward_service.scoring import make_scorer
from reward_service.terms import TERMS
from scene_graph.cleaning import TASK_LISTS
from services.errors import InvalidInputError
from services.schemas.rewards import RewardRequest, RewardResponse
from services.schemas.rubrics import Rubric, RubricDescription, RubricList, TermDescription

EXAMPLE: dict[str, Any] = {
    "task": "sgg",
    "rubric": "balanced",
    "groups": [
        {
            "group_id": "demo-e0-17",
            "image_size": [640, 480],
            "box_space": "relative_1000",
            "reference": {
                "objects": [
                    {"id": "man.1", "bbox": [10.0, 20.0, 200.0, 400.0]},
                    {"id": "horse.2", "bbox": [50.0, 150.0, 400.0, 470.0]},
                ],
                "relationships": [{"subject": "man.1", "predicate": "riding", "object": "horse.2"}],
            },
            "completions": [
                '<answer>{"objects": [{"id": "man.1", "bbox": [16, 42, 313, 833]}, '
                '{"id": "horse.2", "bbox": [78, 313, 625, 979]}], "relationships": '
                '[{"subject": "man.1", "predicate": "riding", "object": "horse.2"}]}</answer>',
                '<answer>{"objects": [{"id": "man.1", "bbox": [16, 42',
            ],
            "require_thinking": False,
            "num_tokens": [78, 18],
        }
    ],
}
"""An honest completion, and one that was cut off: in the OpenAPI page, docs and golden files."""


def example_answer() -> dict[str, Any]:
    """What the service answers to `EXAMPLE`."""
    request = RewardRequest.model_validate(EXAMPLE)
    scorer = make_scorer(request.rubric, request.task)
    return RewardResponse(
        rubric=scorer.rubric.name,
        rubric_version=scorer.rubric_version,
        groups=scorer.score(request.groups),
    ).model_dump(mode="json")


def list_rubrics() -> RubricList:
    """Every rubric that ships and every term."""
    return RubricList(
        rubrics=[_describe(rubric) for rubric in RUBRICS.values()],
        terms={
            name: TermDescription(
                formula=term.formula, tasks=[task for task in TASK_LISTS if task in term.tasks]
            )
            for name, term in TERMS.items()
        },
    )


def _describe(rubric: Rubric) -> RubricDescription:
    scorers = {}
    for task in TASK_LISTS:
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
