"""The OpenAPI page of a service, with what FastAPI does not see: tokens, problems, byte bodies."""

from collections.abc import Iterator, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.constants import REF_PREFIX
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from services import errors
from services.guard import PUBLIC_PATHS
from services.problems import MEDIA_TYPE, Problem, problem

_DETAIL = "what is wrong, and what to do"
_BODY_ERRORS = (errors.TooLargeError, errors.InvalidInputError, errors.UnavailableError)


class DescribedApp(FastAPI):
    """A FastAPI app that documents what `services.app.create_app` adds to every route."""

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
        for operation in _operations(document, public=True):
            if "422" in operation["responses"]:
                operation["responses"]["422"] = _problem(errors.InvalidInputError)
        for operation in _operations(document, public=False):
            if self.token_needed:
                operation["security"] = [{"token": []}]
            operation["responses"] |= self._problems(has_body="requestBody" in operation)

    def _problems(self, *, has_body: bool) -> dict[str, Any]:
        found: list[type[errors.SggError]] = [errors.SggError]
        found += [errors.UnauthorizedError] * self.token_needed
        found += _BODY_ERRORS * has_body
        return {str(error.status): _problem(error) for error in sorted(found, key=_status)}


def reference(message: type[BaseModel]) -> dict[str, str]:
    """The schema that stands for a message of `byte_bodies`."""
    return {"$ref": REF_PREFIX + message.__name__}


def _operations(document: dict[str, Any], *, public: bool) -> Iterator[dict[str, Any]]:
    for path, operations in document["paths"].items():
        if (path in PUBLIC_PATHS) == public:
            yield from operations.values()


def _status(error: type[errors.SggError]) -> int:
    return error.status


def _problem(error: type[errors.SggError]) -> dict[str, Any]:
    wrong = [errors.Mistake("body.groups.0.completions", "Field required")]
    made = error(_DETAIL) if error.status != 422 else errors.InvalidInputError(_DETAIL, wrong)
    body = problem(made)
    return {
        "description": body["title"],
        "content": {MEDIA_TYPE: {"schema": reference(Problem), "example": body}},
    }
