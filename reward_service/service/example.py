"""The worked example of `POST /v1/rewards` in the OpenAPI page, the docs and the golden files."""

from typing import Any

from reward_service.scoring import make_scorer
from services.schemas.rewards import RewardRequest, RewardResponse

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
"""An honest completion, and one that was cut off."""


def example_answer() -> dict[str, Any]:
    """What the service answers to `EXAMPLE`."""
    request = RewardRequest.model_validate(EXAMPLE)
    scorer = make_scorer(request.rubric, request.task)
    return RewardResponse(
        rubric=scorer.rubric.name,
        rubric_version=scorer.rubric_version,
        groups=scorer.score(request.groups),
    ).model_dump(mode="json")
