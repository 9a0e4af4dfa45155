"""The reward service: `POST /v1/rewards`, `GET /v1/rubrics`. Holds no state; any number may run."""

import logging

from fastapi import FastAPI
from prometheus_client import Counter

from reward_service.rubrics import RUBRICS, Rubric, find_rubric
from reward_service.scoring import reference_graph, score_group
from reward_service.terms import TERMS
from services import app as http
from services.schemas.common import Message
from services.schemas.rewards import RewardRequest, RewardResponse, ScoredGroup
from services.settings import Settings, read_token

logger = logging.getLogger(__name__)

BODY_LIMIT_BYTES = 4_000_000


class RubricDescription(Message):
    """A rubric as `GET /v1/rubrics` shows it."""

    rubric: Rubric
    rubric_version: str
    max_total: float
    formulas: dict[str, str]
    """Of its terms."""


class RubricList(Message):
    """Answer of `GET /v1/rubrics`."""

    rubrics: list[RubricDescription]


def build_app(settings: Settings) -> FastAPI:
    """The service as an ASGI app, with the data token of the settings or the environment."""
    token = read_token("SGG_DATA_TOKEN", settings.security.data_token_file)
    app = http.create_app(
        title="reward service",
        version="1",
        readiness=lambda: None,  # pure functions: alive is ready
        body_limit_bytes=BODY_LIMIT_BYTES,
        data_token=token,
    )
    scored = Counter(
        "reward_completions", "Scored completions", ["status"], registry=app.state.registry
    )

    # A plain `def`: FastAPI runs it in a thread, and health stays answerable while it computes.
    @app.post("/v1/rewards")
    def post_rewards(request: RewardRequest) -> RewardResponse:
        """Score every completion of every group."""
        rubric = find_rubric(request.rubric)
        groups = [score_group(group, rubric) for group in request.groups]
        _report(request, groups, scored)
        return RewardResponse(
            rubric=rubric.name, rubric_version=rubric.rubric_version, groups=groups
        )

    @app.get("/v1/rubrics")
    async def get_rubrics() -> RubricList:
        """The rubrics that ship, with terms, weights and formulas."""
        return RubricList(rubrics=[describe(rubric) for rubric in RUBRICS.values()])

    return app


def serve(settings: Settings) -> None:
    """Serve at `[reward] url` until a signal; `services.app.serve` says what it raises."""
    http.serve(build_app(settings), settings.reward.url)


def describe(rubric: Rubric) -> RubricDescription:
    """A rubric with what its terms compute."""
    return RubricDescription(
        rubric=rubric,
        rubric_version=rubric.rubric_version,
        max_total=sum(rubric.terms.values()),
        formulas={name: TERMS[name].formula for name in rubric.terms},
    )


def _report(request: RewardRequest, groups: list[ScoredGroup], scored: Counter) -> None:
    """Count statuses, and say which references are not what their dataset meant."""
    for group, result in zip(request.groups, groups, strict=True):
        for reward in result.rewards:
            scored.labels(reward.status).inc()
        _, dropped = reference_graph(group)
        if dropped:
            logger.warning("the reference of group %s lost parts: %s", group.group_id, dropped)
