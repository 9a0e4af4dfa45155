"""Reads request bodies in threads: images make them megabytes long, and many come at once."""

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.datastructures import FormData, Headers
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from services.errors import InvalidInputError
from services.http.guard import check_json, check_media_type
from services.http.problems import invalid_input
from services.schemas.common import MAX_IMAGES
from services.schemas.versions import parse

M = TypeVar("M", bound=BaseModel)

FORM = "multipart/form-data"
_MAX_VALUES = 20_000
"""JSON values in a request to sample: a prompt and its schema have hundreds."""
_MAX_FIELDS = 32
"""A form's, beside its files"""
_MAX_FIELD_BYTES = 4096


async def read_body(request: Request, message: type[M], max_values: int = _MAX_VALUES) -> M:
    """The body as a message.

    Raises:
        MediaTypeError: It does not say that it is JSON.
        TooLargeError: It has more values than `max_values`.
        InvalidInputError: It is no such message.
    """
    check_media_type(request)
    return await asyncio.to_thread(_parse, await request.body(), message, max_values)


async def read_form(request: Request, message: type[M]) -> M:
    """A form as a message: a field of several parts is a list.

    Raises:
        InvalidInputError: It is no such message.
    """
    return await asyncio.to_thread(_parse_form, request.headers, await request.body(), message)


def _parse(body: bytes, message: type[M], max_values: int) -> M:
    check_json(body, max_values)
    try:
        return parse(message, body)
    except ValidationError as error:
        escaped = _escaped(body) if error.errors()[0]["type"] == "json_invalid" else None
        if escaped is None:
            raise _invalid(error) from error
    try:
        return parse(message, escaped)
    except ValidationError as error:
        raise _invalid(error) from error


def _escaped(body: bytes) -> str | None:
    """JSON with line breaks inside strings, as a shell puts the text of `base64` there; else None.

    JSON itself has none there.
    """
    try:
        return json.dumps(json.loads(body, strict=False)) if b"\n" in body else None
    except (ValueError, RecursionError):
        return None


def _parse_form(headers: Headers, body: bytes, message: type[M]) -> M:
    try:
        form = asyncio.run(_form(headers, body))
    except MultiPartException as error:
        raise InvalidInputError(f"the form cannot be read: {error.message}") from error
    except (LookupError, ValueError) as error:  # of a charset that the body says it has
        raise InvalidInputError(f"the form cannot be read: {error}") from error
    try:
        return message.model_validate(_fields(form))
    except ValidationError as error:
        raise _invalid(error) from error


class _InMemory(MultiPartParser):
    """Writes no file: the body is in memory as it is."""

    spool_max_size = 0


async def _form(headers: Headers, body: bytes) -> FormData:
    async def whole() -> AsyncGenerator[bytes]:
        yield body

    parser = _InMemory(
        headers,
        whole(),
        max_files=MAX_IMAGES,
        max_fields=_MAX_FIELDS,
        max_part_size=_MAX_FIELD_BYTES,
    )
    return await parser.parse()


def _fields(form: FormData) -> Mapping[str, Any]:
    """A file is always one of a list; of a text that comes twice both are shown to the message.

    A field that a person has left empty is not there.
    """
    fields: dict[str, Any] = {}
    for name in form:
        parts = [part for part in form.getlist(name) if part != ""]
        if not parts:
            continue
        values = [part if isinstance(part, str) else part.file.read() for part in parts]
        fields[name] = values[0] if values == parts and len(values) == 1 else values
    return fields


def _invalid(error: ValidationError) -> InvalidInputError:
    return invalid_input(error.errors(include_input=False, include_context=False), ("body",))
