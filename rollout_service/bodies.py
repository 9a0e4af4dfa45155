"""Reads request bodies in threads: images make them megabytes long, and many come at once."""

import asyncio
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from services.guard import check_nesting
from services.problems import invalid_input

M = TypeVar("M", bound=BaseModel)


async def read_body(request: Request, message: type[M]) -> M:
    """The body as a message.

    Raises:
        InvalidInputError: It is no such message.
    """
    return await asyncio.to_thread(_parse, await request.body(), message)


def _parse(body: bytes, message: type[M]) -> M:
    check_nesting(body)
    try:
        return message.model_validate_json(body)
    except ValidationError as error:
        found = error.errors(include_input=False, include_context=False)
        raise invalid_input(found, ("body",)) from error
