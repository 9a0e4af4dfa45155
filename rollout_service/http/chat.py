"""OpenAI's routes, over any engine that can chat: what a request may hold, and who may come in."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import ExitStack
from typing import Any, Literal

from fastapi import FastAPI
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from rollout_service.http import examples
from rollout_service.http.bodies import read_body
from rollout_service.http.open_requests import OpenRequests, while_connected
from rollout_service.server import RolloutServer
from services.errors import (
    EngineError,
    InvalidInputError,
    MediaTypeError,
    NotFoundError,
    SggError,
    TooLargeError,
    UnavailableError,
)
from services.http.openapi import answer, body_of
from services.images import image_from_data_uri
from services.schemas.chat import ChatRequest


class OpenAiMistake(BaseModel):
    """What is wrong, as OpenAI's clients read it."""

    message: str
    type: Literal["invalid_request_error", "server_error"]
    param: str | None
    code: str


class OpenAiError(BaseModel):
    """Answer of these routes from 400 on."""

    error: OpenAiMistake


_MISTAKES: tuple[tuple[SggError, str], ...] = (
    (InvalidInputError("there is no parameter 'tools' here"), "The request is wrong."),
    (NotFoundError("the model gpt-4 is not served"), "No such model, or the engine cannot chat."),
    (TooLargeError("the JSON has over 20000 values; send less at a time"), "Over a stated limit."),
    (MediaTypeError("the body has to be JSON"), "The body does not say that it is JSON."),
    (EngineError("the engine died"), "The engine failed."),
    (UnavailableError("256 requests are in flight; try again later"), "Retry later."),
)


def _errors() -> dict[int | str, dict[str, Any]]:
    found: dict[int | str, dict[str, Any]] = {}
    for error, description in _MISTAKES:
        told = answer(description, _openai_error(error), status=_status(error))
        found |= {status: {"model": OpenAiError, **one} for status, one in told.items()}
    return found


class ChatRoutes:
    """`POST /v1/chat/completions` and `GET /v1/models`. Errors have OpenAI's shape."""

    def __init__(self, server: RolloutServer, open_requests: OpenRequests) -> None:
        self._server = server
        self._open_requests = open_requests

    def add_to(self, app: FastAPI) -> None:
        """Mount the routes."""
        errors = _errors()
        app.get(
            "/v1/models",
            tags=["sampling"],
            responses=errors | answer("OpenAI's list.", examples.MODELS_ANSWER),
        )(_with_openai_errors(self._models))
        done = answer("OpenAI's answer, or its events.", examples.CHAT_ANSWER)
        done[200]["content"]["text/event-stream"] = {"example": examples.CHAT_EVENTS}
        app.post(
            "/v1/chat/completions",
            tags=["sampling"],
            openapi_extra=body_of(ChatRequest, examples.CHAT),
            responses=errors | done,
        )(_with_openai_errors(self._chat))

    async def _models(self, _: Request) -> Response:
        """List what a request may name as its model."""
        return JSONResponse(await self._server.ready_engine().models())

    async def _chat(self, http: Request) -> Response:
        """Complete a chat; with `stream`, as server-sent events."""
        request = await read_body(http, ChatRequest)
        with ExitStack() as place:
            place.enter_context(self._open_requests.place())
            answer = await while_connected(http, self._answer(request))
            if isinstance(answer, dict):
                return JSONResponse(answer)
            return _Stream(answer, place.pop_all())

    async def _answer(self, request: ChatRequest) -> dict[str, Any] | AsyncIterator[str]:
        engine = self._server.ready_engine()
        images = [await asyncio.to_thread(image_from_data_uri, i.data) for i in request.images]
        answer = await self._server.unless_stopped(engine.chat(request, images))
        if isinstance(answer, dict):
            return answer
        first = await self._server.unless_stopped(anext(answer))
        return self._events(first, answer)

    async def _events(self, event: str, rest: AsyncIterator[str]) -> AsyncIterator[str]:
        """The first event came before the answer's status, so that errors have one of their own."""
        try:
            while True:
                yield event
                event = await self._server.unless_stopped(anext(rest))
        except StopAsyncIteration:
            return
        except SggError as error:
            yield f"data: {json.dumps(_openai_error(error))}\n\n"


class _Stream(StreamingResponse):
    """Holds its place until the last event is sent or the client has gone."""

    def __init__(self, events: AsyncIterator[str], place: ExitStack) -> None:
        super().__init__(events, media_type="text/event-stream")
        self._place = place

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._place:
            await super().__call__(scope, receive, send)


def _with_openai_errors(
    handle: Callable[[Request], Coroutine[None, None, Response]],
) -> Callable[[Request], Coroutine[None, None, Response]]:
    async def handle_all(request: Request) -> Response:
        try:
            return await handle(request)
        except SggError as error:
            headers = {"Retry-After": "1"} if error.status == 503 else {}
            return JSONResponse(_openai_error(error), _status(error), headers)

    handle_all.__name__ = handle.__name__.strip("_")
    handle_all.__doc__ = handle.__doc__
    return handle_all


def _openai_error(error: SggError) -> dict[str, Any]:
    """As OpenAI's clients read it."""
    mistakes = error.mistakes if isinstance(error, InvalidInputError) else ()
    param = mistakes[0].path if mistakes else None
    kind: Literal["invalid_request_error", "server_error"]
    kind = "invalid_request_error" if _status(error) < 500 else "server_error"
    code = type(error).__name__
    mistake = OpenAiMistake(message=error.message, type=kind, param=param, code=code)
    return OpenAiError(error=mistake).model_dump()


def _status(error: SggError) -> int:
    return 400 if error.status == 422 else error.status
