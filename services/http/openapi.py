"""The OpenAPI document of a service, with what FastAPI does not see.

Tokens, problems, bodies that handlers read as bytes, and an example of every body and answer. The
first sentence of a handler's docstring is its route's title, and the rest its description.
"""

import json
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.constants import REF_PREFIX
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from services import errors
from services.http.guard import JSON, PUBLIC_PATHS
from services.http.problems import MEDIA_TYPE, problem
from services.schemas.problems import Problem

FORM = "multipart/form-data"
_EXAMPLE = "x-example"
_DETAILS: dict[type[errors.SggError], str] = {
    errors.MalformedRequestError: "send the next request after an answer",
    errors.UnauthorizedError: "/v1/rewards asks for the data token: send 'Authorization: Bearer "
    "<token>'",
    errors.CrossOriginError: "a page of another origin cannot ask for this",
    errors.NotFoundError: "image 9f86d081884c7d65 is neither in runs/demo/images nor in Redis",
    errors.SlowRequestError: "the body did not come within 60 s; send less at a time",
    errors.ConflictError: "version 4 is not staged: stage it first",
    errors.TooLargeError: "the body is over 8388608 bytes; send less at a time",
    errors.MediaTypeError: "the body has to be JSON: send Content-Type: application/json",
    errors.MisdirectedError: "this service is not called 'example.org': use its address, or the "
    "name in its URL's setting",
    errors.InvalidInputError: "the request has a mistake; body.images.0.data: Field required",
    errors.HeadTooLargeError: "request line and headers are over 32768 bytes",
    errors.SggError: "internal error; the service's log has the traceback",
    errors.UnavailableError: "256 requests are in flight; try again later",
    errors.WaitTimeoutError: "the upload was silent for 60 s",
}
"""What each may say."""
_EVERYWHERE: tuple[type[errors.SggError], ...] = (
    errors.MalformedRequestError,
    errors.SlowRequestError,
    errors.MisdirectedError,
    errors.HeadTooLargeError,
)
_BODY_ERRORS = (
    errors.TooLargeError,
    errors.MediaTypeError,
    errors.InvalidInputError,
    errors.UnavailableError,
)


class DescribedApp(FastAPI):
    """A FastAPI app that documents what `services.http.app.create_app` adds to every route."""

    token_needed: bool = False
    """Whether routes ask for a token."""
    byte_bodies: Sequence[type[BaseModel]] = ()
    """Messages of handlers that parse the body themselves, referred to by `reference`."""

    def openapi(self) -> dict[str, Any]:
        """The document, made once."""
        if self.openapi_schema is None:
            self._complete(super().openapi())
        assert self.openapi_schema is not None
        return self.openapi_schema

    def _complete(self, document: dict[str, Any]) -> None:
        components = document.setdefault("components", {})
        schemas = components.setdefault("schemas", {})
        for unused in ("HTTPValidationError", "ValidationError"):  # FastAPI's own, not ours
            schemas.pop(unused, None)
        wanted = [(message, "validation") for message in (Problem, *self.byte_bodies)]
        found = models_json_schema(wanted, ref_template=REF_PREFIX + "{model}")[1]["$defs"]  # type: ignore[arg-type]
        components["schemas"] = dict(sorted({**found, **schemas}.items()))
        if self.token_needed:
            components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                self._complete_operation(operation, method, public=path in PUBLIC_PATHS)
                form = operation.get("requestBody", {}).get("content", {}).get(FORM)
                if form:
                    _fill_form(form, components["schemas"])

    def _complete_operation(self, operation: dict[str, Any], method: str, *, public: bool) -> None:
        _title(operation)
        for one in (operation.get("requestBody", {}), *operation["responses"].values()):
            _restore(one.get("content", {}))
        if "422" in operation["responses"]:  # FastAPI's own of parameters, or a problem already
            operation["responses"]["422"] = _problem(errors.InvalidInputError)
        if self.token_needed and not public:
            operation["security"] = [{"token": []}]
        found = self._errors(public, "requestBody" in operation)
        found += [errors.CrossOriginError] * (method != "get")
        told_by_all = problems(*found)
        operation["responses"] = _merged(operation["responses"], told_by_all)

    def _errors(self, public: bool, has_body: bool) -> list[type[errors.SggError]]:
        found = [*_EVERYWHERE, errors.SggError]
        found += [errors.UnauthorizedError] * (self.token_needed and not public)
        found += _BODY_ERRORS * has_body
        return found


def problems(*found: type[errors.SggError]) -> dict[int | str, dict[str, Any]]:
    """`responses` of a route that raises these beside what every route does."""
    return {str(error.status): _problem(error) for error in found}


def reference(message: type[BaseModel]) -> dict[str, str]:
    """The schema that stands for a message of `byte_bodies`."""
    return {"$ref": REF_PREFIX + message.__name__}


def body_of(
    message: type[BaseModel],
    example: Any,
    *,
    form: tuple[type[BaseModel], Any] | None = None,
) -> dict[str, Any]:
    """`openapi_extra` of a route whose handler parses its body itself.

    Args:
        message: Of a body that is JSON.
        example: Such a body.
        form: Message and example of one that is `multipart/form-data`, where the route takes it.
    """
    content = {JSON: {"schema": reference(message)} | _kept(example)}
    if form is not None:
        content[FORM] = {"schema": reference(form[0])} | _kept(form[1])
    return {"requestBody": {"required": True, "content": content}}


def answer(
    description: str, example: Any, *, media: str = JSON, status: int = 200
) -> dict[int | str, dict[str, Any]]:
    """`responses` of a route that answers so; add the route's other ones with `|`.

    Args:
        description: One sentence.
        example: The answer's body.
        media: Its type.
        status: Its HTTP status.
    """
    return {status: {"description": description, "content": {media: _kept(example)}}}


def _kept(example: Any) -> dict[str, Any]:
    """An example as text, of which FastAPI cannot take the nulls; `_restore` reads it again."""
    return {_EXAMPLE: json.dumps(example)}


def _restore(contents: dict[str, Any]) -> None:
    for content in contents.values():
        if _EXAMPLE in content:
            content["example"] = json.loads(content.pop(_EXAMPLE))


def _fill_form(content: dict[str, Any], schemas: dict[str, Any]) -> None:
    """Let the page's form begin with the example; it would fill in `null` or what is possible."""
    fields = schemas[content["schema"]["$ref"].removeprefix(REF_PREFIX)]["properties"]
    for name, field in fields.items():
        if field.get("default", ...) is None:
            field["example"] = content["example"].get(name, "")
            del field["default"]


def _title(operation: dict[str, Any]) -> None:
    first, _, rest = operation.pop("description", "").partition("\n\n")
    plain = " ".join(first.replace("`", "").split())
    operation["summary"] = plain.removesuffix(".") or operation["summary"]
    if rest:
        operation["description"] = rest


def _merged(told: dict[str, Any], found: dict[Any, Any]) -> dict[str, Any]:
    """A route's own words come first; a status may have an answer of each kind."""
    merged = found | told
    for status in found.keys() & told.keys():
        content = found[status]["content"] | told[status].get("content", {})
        merged[status] = told[status] | {"content": content}
    return dict(sorted(merged.items()))


def _problem(error: type[errors.SggError]) -> dict[str, Any]:
    wrong = [errors.Mistake("body.images.0.data", "Field required")]
    detail = _DETAILS[error]
    made = error(detail) if error.status != 422 else errors.InvalidInputError(detail, wrong)
    body = problem(made)
    return {
        "description": body["title"],
        "content": {MEDIA_TYPE: {"schema": reference(Problem), "example": body}},
    }
