"""`POST /v1/scene-graphs`: scene graphs of pictures, over any engine."""

import asyncio
from collections.abc import Awaitable, Callable

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from rollout_service.http import examples
from rollout_service.http.bodies import FORM, read_body, read_form
from rollout_service.http.open_requests import OpenRequests, while_connected
from rollout_service.scene_graphs import Answer, PictureQuestion
from rollout_service.server import RolloutServer
from services.errors import MediaTypeError, NotFoundError, SggError
from services.http.guard import JSON, media_type
from services.http.openapi import answer, body_of, problems
from services.http.problems import mistake, problem
from services.schemas.common import ImageRef
from services.schemas.problems import Problem
from services.schemas.rewards import Status
from services.schemas.rollouts import InlineImage
from services.schemas.scene_graphs import (
    ImageError,
    ImageGraph,
    SceneGraphForm,
    SceneGraphOptions,
    SceneGraphRequest,
    SceneGraphResponse,
)
from services.settings import Settings

_DECODED_AT_ONCE = 2
"""Pictures that are looked at or drawn at the same time, beside those that the engine prepares."""

BytesOf = Callable[[ImageRef | InlineImage], Awaitable[bytes]]


class SceneGraphRoutes:
    """Asks the question of the server's run; a request may change how answers are sampled."""

    def __init__(
        self,
        settings: Settings,
        server: RolloutServer,
        open_requests: OpenRequests,
        bytes_of: BytesOf,
    ) -> None:
        """Args: bytes_of: Gives an image of a message as its encoded file."""
        self._settings = settings
        self._server = server
        self._open_requests = open_requests
        self._bytes_of = bytes_of
        self._decoding = asyncio.Semaphore(_DECODED_AT_ONCE)

    def add_to(self, app: FastAPI) -> None:
        """Mount the route."""
        app.post(
            "/v1/scene-graphs",
            response_model=SceneGraphResponse,
            openapi_extra=body_of(
                SceneGraphRequest,
                examples.SCENE_GRAPHS,
                form=(SceneGraphForm, examples.SCENE_GRAPHS_FORM),
            ),
            responses=answer("A graph for each picture.", examples.SCENE_GRAPHS_ANSWER)
            | problems(NotFoundError),
            tags=["scene graphs"],
        )(self.scene_graphs)

    async def scene_graphs(self, http: Request) -> Response:
        """Write the scene graph of each picture, with boxes in pixels of the upright picture.

        A picture that cannot be answered has an `error` in its place, and the others have their
        graphs. Where no picture can be answered, the answer is the first one's problem.
        """
        request = await _read(http)
        task = self._settings.data.task
        if request.draw and task == "cls":
            raise mistake("body.draw", "graphs of this run have no boxes: its data.task is cls")
        with self._open_requests.place(len(request.images)):
            graphs = await while_connected(http, self._graphs(request))
        response = SceneGraphResponse(server_id=self._server.server_id, task=task, graphs=graphs)
        text = await asyncio.to_thread(response.model_dump_json)
        return Response(text, media_type=JSON)

    async def _graphs(
        self, request: SceneGraphRequest | SceneGraphForm
    ) -> list[ImageGraph | ImageError]:
        work = (self._graph(image, request) for image in request.images)
        found = await asyncio.gather(*work, return_exceptions=True)
        failures = [one for one in found if isinstance(one, BaseException)]
        if len(failures) == len(found):
            raise failures[0]
        return [_image_error(one) if isinstance(one, BaseException) else one for one in found]

    async def _graph(
        self, image: ImageRef | InlineImage | bytes, options: SceneGraphOptions
    ) -> ImageGraph:
        """Reads the free answer or, where that is wanted, one under the grammar."""
        data = image if isinstance(image, bytes) else await self._bytes_of(image)
        async with self._decoding:
            question = await asyncio.to_thread(PictureQuestion.about, self._settings, data)
        answer = await self._ask(question, options, constrained=False)
        before: Status | None = None
        constrain = options.constrain or self._settings.evaluation.constrain
        if constrain == "all" or (constrain == "failures" and answer.parsed.status != "ok"):
            before = answer.parsed.status
            answer = await self._ask(question, options, constrained=True)
        svg = None
        if options.draw:
            async with self._decoding:
                svg = await asyncio.to_thread(question.draw, answer)
        return await asyncio.to_thread(
            question.image_graph, answer, unconstrained_status=before, text=options.text, svg=svg
        )

    async def _ask(
        self, question: PictureQuestion, options: SceneGraphOptions, *, constrained: bool
    ) -> Answer:
        result = await self._server.sample(question.request(options, constrained=constrained))
        return await asyncio.to_thread(question.read, result.completions[0])


async def _read(http: Request) -> SceneGraphRequest | SceneGraphForm:
    if http.query_params:
        raise mistake("query", "options are fields of the form or of the message, not of the URL")
    kind = media_type(http)
    if kind == FORM:
        return await read_form(http, SceneGraphForm)
    if kind != JSON:
        raise MediaTypeError(
            f"send pictures as a form ({FORM}: curl -F images=@photo.jpg), or a message as {JSON}"
        )
    return await read_body(http, SceneGraphRequest)


def _image_error(error: BaseException) -> ImageError:
    """What nobody foresaw is not one picture's fault."""
    if not isinstance(error, SggError):
        raise error
    return ImageError(error=Problem.model_validate(problem(error)))
