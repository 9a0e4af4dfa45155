"""`POST /v1/chat/completions`: the fields of OpenAI's API that are served, and no others.

Whatever else the sampling library would read from a request, such as templates, processor options
or paths, is refused as an unknown field.
"""

from typing import Annotated, Any, Literal

from pydantic import AliasChoices, ConfigDict, Field, field_validator

from services.schemas.common import (
    MAX_COMPLETIONS,
    ChatMessage,
    ImagePart,
    Message,
    Name,
    Stop,
    TextPart,
)
from services.schemas.rollouts import InlineImage

MaxTokens = Annotated[int, Field(ge=1, le=32_768)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Bias = Annotated[float, Field(ge=-100, le=100)]
TokenKey = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]


class ChatText(Message):
    """Text of a turn."""

    type: Literal["text"]
    text: str = Field(max_length=100_000)


class ImageUrl(Message):
    """An image inside its request; nothing is fetched."""

    url: str = Field(max_length=11_000_000)
    """`data:image/…;base64,…`"""
    detail: Literal["auto", "low", "high"] | None = None
    """Accepted and ignored: the server's pixel limits hold."""


class ChatImage(Message):
    """An image of a turn."""

    type: Literal["image_url"]
    image_url: ImageUrl


ChatPart = Annotated[ChatText | ChatImage, Field(discriminator="type")]


class ChatTurn(Message):
    """One turn of the chat.

    Example: `{"role": "user", "content": "Write the scene graph."}`
    """

    role: Literal["system", "user", "assistant"]
    content: list[ChatPart] = Field(min_length=1, max_length=16)
    """Or a text alone."""

    @field_validator("content", mode="before")
    @classmethod
    def _text_alone(cls, content: Any) -> Any:
        return [{"type": "text", "text": content}] if isinstance(content, str) else content


class StreamOptions(Message):
    """What a streamed answer brings beside text."""

    include_usage: bool = False


class JsonSchema(Message):
    """What an answer has to look like."""

    model_config = ConfigDict(serialize_by_alias=True)

    name: Name
    description: str | None = Field(default=None, max_length=1000)
    json_schema: dict[str, Any] = Field(
        validation_alias=AliasChoices("schema"), serialization_alias="schema"
    )
    strict: bool | None = None


class ResponseFormat(Message):
    """Text, any JSON object, or JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class ChatRequest(Message):
    """Body of `POST /v1/chat/completions`, as OpenAI describes it.

    Example: `{"model": "toy-start", "messages": [{"role": "user", "content": "Hello"}]}`
    """

    model: Name
    """As `GET /v1/models` names it."""
    messages: list[ChatTurn] = Field(min_length=1, max_length=32)
    n: int | None = Field(default=None, ge=1, le=MAX_COMPLETIONS)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    max_tokens: MaxTokens | None = None
    max_completion_tokens: MaxTokens | None = None
    seed: int | None = Field(default=None, ge=0, lt=2**53)
    stop: Stop | Annotated[list[Stop], Field(max_length=8)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: dict[TokenKey, Bias] | None = Field(default=None, max_length=300)
    response_format: ResponseFormat | None = None
    user: str | None = Field(default=None, max_length=200)
    """Accepted and ignored."""

    @property
    def chat(self) -> list[ChatMessage]:
        """The turns as `POST /v1/rollouts` has them."""
        return [
            ChatMessage(
                role=turn.role,
                content=[
                    TextPart(text=part.text) if isinstance(part, ChatText) else ImagePart()
                    for part in turn.content
                ],
            )
            for turn in self.messages
        ]

    @property
    def images(self) -> list[InlineImage]:
        """In the order of the parts."""
        parts = [part for turn in self.messages for part in turn.content]
        return [InlineImage(data=p.image_url.url) for p in parts if isinstance(p, ChatImage)]
