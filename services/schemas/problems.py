"""What is wrong with a request, or with a part of it, as RFC 9457 has it."""

from pydantic import BaseModel, ConfigDict

from services.errors import Mistake


class Problem(BaseModel):
    """The body of every answer from 400 on, as `application/problem+json`."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    type: str
    """`urn:sgg:` and the error's class, or `about:blank` where the HTTP status says it all."""
    title: str
    status: int
    detail: str
    """What is wrong and what to do."""
    retryable: bool
    """Whether the same request can succeed later."""
    errors: list[Mistake] = []
    """With 422: the first mistakes of a body, each with its path."""
