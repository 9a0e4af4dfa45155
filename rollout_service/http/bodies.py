"""Reads request bodies in threads: images make them megabytes long, and many come at once."""

import asyncio
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from services.http.guard import check_json, check_media_type
from services.http.problems import invalid_input

M = TypeVar("M", bound=BaseModel)

_MAX_VALUES = 20_000
"""JSON values in a request to sample: a prompt and its schema have hundreds."""


async def read_body(request: Request, message: type[M], max_values: int = _MAX_VALUES) -> M:
    """The body as a message.

    Raises:
        MediaTypeError: It does not say that it is JSON.
        TooLargeError: It has more values than `max_values`.
        InvalidInputError: It is no such message.
    """
    check_media_type(request)
    return await asyncio.to_thread(_parse, await request.body(), message, max_values)


def _parse(body: bytes, message: type[M], max_values: int) -> M:
    check_json(body, max_values)
    try:
        return message.model_validate_json(body)
    except ValidationError as error:
        found = error.errors(include_input=False, include_context=False)
        raise invalid_input(found, ("body",)) from error
