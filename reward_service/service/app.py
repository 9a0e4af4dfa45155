"""The reward service: `POST /v1/rewards`, `GET /v1/rubrics`. Holds no state; any number may run."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Literal

from fastapi import FastAPI, Request, Response
from pydantic import create_model

from reward_service.own_terms import load_own_terms
from reward_service.rubrics import RUBRICS
from reward_service.service.catalogue import EXAMPLE, example_answer, list_rubrics
from reward_service.service.request_handler import Answerer
from reward_service.service.scoring_queue import BODY_LIMIT_BYTES, HELD_LIMIT_BYTES, ScoringQueue
from reward_service.service.workers import Workers, settle
from reward_service.similarity.registry import Similarities
from services.errors import ClientGoneError
from services.http import app as http
from services.http.guard import check_media_type
from services.http.openapi import answer, body_of
from services.schemas.rewards import RewardRequest, RewardResponse
from services.schemas.rubrics import Rubric, RubricList
from services.settings import Settings
from services.telemetry import Tracing


def build_app(settings: Settings) -> FastAPI:
    """The service as an ASGI app, with the data token of the settings or the environment.

    Raises:
        SettingsError: The folder of similarities does not exist, or a term of `reward.terms` cannot
            be used.
    """
    reward = settings.reward
    make_answerer = partial(_make_answerer, settings)
    answerer = make_answerer()  # settings that are wrong are told here, and not by a worker
    may_load = bool(reward.similarity_folder or reward.embedding_models)
    at_once = answerer if reward.workers == 1 and not may_load else None
    workers = Workers(make_answerer, reward.workers)
    tracing = Tracing("sgg-rl reward", settings.telemetry.otlp_endpoint)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await workers.start()
        settle()
        yield
        await workers.stop()
        await asyncio.to_thread(tracing.close)

    app = http.create_app(
        title="reward service",
        url=reward.url,
        description="Scores answers of a model against annotated scene graphs. It holds no state.",
        tags={"rewards": "Text in, rewards out; and what a reward can consist of."},
        readiness=workers.why_not_ready,
        body_limit_bytes=BODY_LIMIT_BYTES,
        held_limit_bytes=HELD_LIMIT_BYTES,
        data_token=settings.data_token,
        lifespan=lifespan,
    )
    app.byte_bodies = (_documented_request(),)
    _add_routes(app, ScoringQueue(workers, app.state.registry, at_once), tracing)
    tracing.trace_requests(app)
    return app


def serve(settings: Settings) -> None:
    """Serve at `[reward] url` until a signal; `services.http.app.serve` says what it raises."""
    http.serve(build_app(settings), settings.reward.url)


def _make_answerer(settings: Settings) -> Answerer:
    reward = settings.reward
    load_own_terms(reward.terms)
    return Answerer(Similarities(reward.similarity_folder, reward.embedding_models))


def _add_routes(app: FastAPI, queue: ScoringQueue, tracing: Tracing) -> None:
    rubrics = list_rubrics()

    @app.post("/v1/rewards", **_documentation())
    async def post_rewards(request: Request) -> Response:
        """Score every completion of every group.

        A group that cannot be scored has an `error` in its place, and the others have their
        rewards. Where no group can be scored the answer is a problem.
        """
        check_media_type(request)
        with tracing.span("score"):
            answer = await queue.answer(await request.body(), request.receive)
            if answer is None:
                raise ClientGoneError("the client left while its request waited")
            tracing.annotate(
                rubric=answer.rubric,
                num_groups=answer.num_groups,
                num_completions=sum(answer.statuses.values()),
                scoring_s=answer.scoring_s,
            )
        return Response(answer.content, media_type="application/json")

    listed = answer("All of them.", rubrics.model_dump(mode="json"))

    @app.get("/v1/rubrics", tags=["rewards"], responses=listed)
    async def get_rubrics() -> RubricList:
        """List the rubrics that ship, and every term that a rubric of one's own can weigh."""
        return rubrics


def _documented_request() -> type[RewardRequest]:
    """A `RewardRequest` whose schema says what a rubric is."""
    rubric: Any = Literal[tuple(RUBRICS)] | Rubric
    return create_model("RewardRequest", __base__=RewardRequest, rubric=(rubric, "balanced"))


def _documentation() -> dict[str, Any]:
    """Describes a route that FastAPI sees neither reading nor writing a message."""
    done = answer("Rewards in the order of the request.", example_answer())[200]
    return {
        "tags": ["rewards"],
        "openapi_extra": body_of(RewardRequest, EXAMPLE),
        "responses": {200: {"model": RewardResponse, **done}},
    }
