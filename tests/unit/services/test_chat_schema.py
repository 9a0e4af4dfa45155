"""Chat requests: OpenAI's fields within limits, in this project's own messages."""

from typing import Any

import pytest
from pydantic import ValidationError

from services.schemas.chat import ChatRequest
from services.schemas.common import ImagePart, TextPart

IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "low"}}


def chat(**fields: Any) -> ChatRequest:
    body = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}
    return ChatRequest.model_validate(body | fields)


def test_turns_and_images_in_their_order() -> None:
    other = {"type": "image_url", "image_url": {"url": "BBBB"}}
    content = [IMAGE, {"type": "text", "text": "and"}, other]
    found = chat(
        messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": content}]
    )
    assert found.chat[0].content == [TextPart(text="Be brief.")]
    assert found.chat[1].content == [ImagePart(), TextPart(text="and"), ImagePart()]
    assert [image.data for image in found.images] == ["data:image/png;base64,AAAA", "BBBB"]


def test_a_schema_keeps_openai_s_name() -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "integer"}}}
    assert chat(response_format=wanted).model_dump(exclude_none=True)["response_format"] == wanted


@pytest.mark.parametrize(
    "fields",
    [
        {"mm_processor_kwargs": {}},
        {"structured_outputs": {"regex": "a"}},
        {"messages": [{"role": "tool", "content": "x"}]},
        {"messages": [{"role": "user", "content": "x", "tool_calls": []}]},
        {"messages": [{"role": "user", "content": [{"type": "image_pil", "image_pil": 1}]}]},
        {"messages": [{"role": "user", "content": [{**IMAGE, "uuid": "x"}]}]},
        {"n": 257},
        {"max_tokens": 0},
        {"top_logprobs": 21},
        {"logit_bias": {"x": 1}},
        {"logit_bias": {"1": float("nan")}},
        {"stop": [""]},
        {"seed": -1},
        {"response_format": {"type": "regex"}},
    ],
)
def test_what_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        chat(**fields)
