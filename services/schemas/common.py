"""Base message and the parts that several stages share."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Stop = Annotated[str, StringConstraints(min_length=1, max_length=1000)]
"""A text that ends a completion."""
Count = Annotated[int, Field(ge=0, lt=2**53)]
"""A number that JSON, Redis's scripts and a float hold exactly."""
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
ModelRunner = Literal["v1", "v2"]
"""vLLM's two implementations of a forward pass and its sampling."""
MAX_IMAGES = 16
"""A prompt has so many images at most; a server takes fewer (`rollout.max_images_per_prompt`). As
many graphs can be asked for at a time."""

MAX_COMPLETIONS = 256
"""A prompt has so many completions at most."""

MAX_KEPT_TOKENS = 20
"""A trainer learns with so high a `top_k` at most: vLLM tells the likeliest tokens, up to 20."""


class Message(BaseModel):
    """Immutable, strict about unknown fields, no NaN or Infinity."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )


class ImageRef(Message):
    """An image by its content. Pixels never travel in a message of the queue.

    Example: `{"sha256": "9f86…0a08", "num_bytes": 5120}`
    """

    sha256: Sha256
    """The encoded file's (PNG, JPEG): its name in the image store."""
    num_bytes: int = Field(ge=1)


class TextPart(Message):
    """Text of a chat message."""

    type: Literal["text"] = "text"
    text: str = Field(max_length=100_000)


class ImagePart(Message):
    """Where an image stands in a chat message; the n-th part is the n-th image of the prompt."""

    type: Literal["image"] = "image"


class ChatMessage(Message):
    """One turn of the prompt.

    Example: `{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Write the
    scene graph."}]}`
    """

    role: Literal["system", "user", "assistant"]
    content: list[TextPart | ImagePart] = Field(min_length=1, max_length=16)


class Sampling(Message):
    """How completions are sampled.

    Example: `{"n": 8, "temperature": 1.0, "max_tokens": 128, "seed": 7, "suppress_token_ids": [5]}`
    """

    n: int = Field(default=1, ge=1, le=MAX_COMPLETIONS)
    """Completions per prompt: the group's size."""
    temperature: float = Field(default=1.0, ge=0.0, le=2.0)
    """0 is greedy. The trainer divides its logits by the same number."""
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    top_k: int = Field(default=0, ge=0, le=1_000_000)
    """Most probable tokens that are sampled from; 0 keeps the whole vocabulary."""
    max_tokens: int = Field(default=1024, ge=1, le=32_768)
    seed: int | None = Field(default=None, ge=0, lt=2**53)
    """The same seed and weights give the same completions on one server."""
    stop: list[Stop] = Field(default_factory=list, max_length=8)
    suppress_token_ids: list[TokenId] = Field(default_factory=list, max_length=64)
    """Never sampled: image placeholders, which would shift the features of the trainer's forward
    pass."""
    json_schema: Literal["scene_graph"] | dict[str, Any] | None = None
    """Only JSON that fits this JSON Schema is sampled, without tags or thinking: a scene graph's,
    or one of your own."""
    grammar: str | None = Field(
        default=None, max_length=10_000, exclude_if=lambda text: text is None
    )
    """Only text of this EBNF is sampled: a graph in the tags of an answer
    (`scene_graph.notations.notation.answer_grammar`). Servers take no other grammar."""
    grammar_library: str | None = Field(
        default=None, max_length=200, exclude_if=lambda text: text is None
    )
    """What a trainer replays the constraint with (`services.models.grammar_library`): a server that
    has another refuses."""
    accept_renormalised: bool = False
    """Lets `json_schema`, `grammar`, `top_p` and `top_k` be used for training, for a trainer that
    applies the same mask."""
    token_ends: bool = Field(default=False, exclude_if=lambda wanted: not wanted)
    """Whether an answer says where in its text each token ends, as scores of its parts need."""
    kept_tokens: bool = Field(default=False, exclude_if=lambda wanted: not wanted)
    """Whether an answer says which tokens each of its own was drawn from, as a trainer needs with
    `top_k`. That has to be from 1 to 20, and the temperature over 0."""

    @model_validator(mode="after")
    def _one_constraint(self) -> "Sampling":
        if self.json_schema is not None and self.grammar is not None:
            raise ValueError("json_schema and grammar are two constraints: set one of them")
        return self

    @model_validator(mode="after")
    def _few_kept(self) -> "Sampling":
        if self.kept_tokens and not (0 < self.top_k <= MAX_KEPT_TOKENS and self.temperature):
            raise ValueError(
                f"kept_tokens needs a top_k from 1 to {MAX_KEPT_TOKENS} and a temperature over 0: "
                "vLLM does not tell the tokens that others were drawn from"
            )
        return self

    @property
    def constrained(self) -> bool:
        """Whether text of a schema or grammar alone is sampled."""
        return self.json_schema is not None or self.grammar is not None

    @property
    def renormalises(self) -> bool:
        """Whether logprobs are of a part of the vocabulary only: too high for a full softmax."""
        return self.constrained or self.top_p < 1 or self.top_k > 0
