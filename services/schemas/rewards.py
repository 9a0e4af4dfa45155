"""`POST /v1/rewards`: scoring of sampled text."""

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, model_validator

from services.schemas.common import Message, Name
from services.schemas.versions import Versioned

Coordinate = Annotated[float, Field(ge=-1e6, le=1e6)]
BoxSpaceName = Annotated[
    str, StringConstraints(pattern=r"^(relative_1000|relative_1|pixels:[1-9]\d{0,4}x[1-9]\d{0,4})$")
]
Task = Literal["sgg", "det", "cls"]
"""`sgg`: objects and relationships. `det`: objects only. `cls`: triplets of names, no boxes."""
Notation = Literal["json", "compact"]
"""What a graph is written as: `json`, or `compact` with a line for each object and relationship."""
Status = Literal["ok", "no_answer", "invalid_json", "schema_violation", "too_large"]


ImageSize = tuple[Annotated[int, Field(ge=1, le=100_000)], Annotated[int, Field(ge=1, le=100_000)]]
"""Width and height, in pixels."""
Score = Annotated[float, Field(ge=-1e6, le=1e6)]
"""A larger one would overflow where rewards of a group are compared."""


class ReferenceObject(Message):
    """A reference object; `bbox` is x1, y1, x2, y2 in pixels of the original image."""

    id: Name
    bbox: tuple[Coordinate, Coordinate, Coordinate, Coordinate]


class ReferenceRelationship(Message):
    """A reference triplet between two object ids."""

    subject: Name
    predicate: Name
    object: Name


class ReferenceGraph(Message):
    """What an image truly shows."""

    objects: list[ReferenceObject] = Field(max_length=500, fail_fast=True)
    relationships: list[ReferenceRelationship] = Field(max_length=2000, fail_fast=True)


class RewardGroup(Message):
    """The completions of one prompt with the reference they are held against.

    Example: `tests/contract/golden/reward_request.json`
    """

    group_id: Name
    image_size: ImageSize
    """Width and height of the original image, in pixels."""
    box_space: BoxSpaceName
    """The space of the completions' boxes. Reference boxes are always pixels of the original
    image."""
    reference: ReferenceGraph
    completions: list[str] = Field(min_length=1, max_length=256, fail_fast=True)
    require_thinking: bool = False
    """Whether the prompt asked for `<think>…</think>` (then `format` requires it)."""
    notation: Notation = Field(default="json", exclude_if=lambda notation: notation == "json")
    """What the prompt asked to write graphs in; text in the other notation has no graph."""
    num_tokens: list[Annotated[int, Field(ge=0, le=10_000_000)]] | None = Field(
        default=None, max_length=256, fail_fast=True
    )
    """Length of each completion in tokens; asked for by `length_penalty` with unit `tokens`."""

    @model_validator(mode="after")
    def _one_count_each(self) -> "RewardGroup":
        if self.num_tokens is not None and len(self.num_tokens) != len(self.completions):
            raise ValueError(
                f"num_tokens has {len(self.num_tokens)} entries for {len(self.completions)} "
                "completions"
            )
        return self


class RewardRequest(Versioned):
    """Body of `POST /v1/rewards`: any number of groups, up to the service's limit."""

    task: Task = "sgg"
    rubric: str | dict[str, Any] = "balanced"
    """A rubric's name, or a rubric in full (`GET /v1/rubrics` shows both)."""
    credit: bool = Field(default=False, exclude_if=lambda credit: not credit)
    """Whether to say what each element of a completion adds."""
    groups: list[RewardGroup] = Field(min_length=1, max_length=1024)


class Matched(Message):
    """How many reference items a completion reached."""

    objects: int
    relationships: int


class Credit(Message):
    """What each of the K elements of a completion adds to its total, in the order of writing.

    What the increments leave of the total is earned at the end of the text. What is said up to a
    place does not depend on what is written behind it.

    Example: `{"num_objects": 1, "spans": [[13, 50], [70, 121]], "increments": [0.75, 2.5]}`
    """

    num_objects: int
    """So many objects come first; triplets follow."""
    spans: list[tuple[int, int]]
    """[K] first character of each and the one after its last, counted in Unicode code points."""
    increments: list[Score]
    """[K] total of the graph with the element less that of the graph before it."""


class Reward(Message):
    """The score of one completion.

    `status` is data, not an error; everything but `ok` gets the lowest reward, with an empty
    graph's breakdown.
    """

    total: Score
    status: Status
    breakdown: dict[str, Score]
    """Term name to value in [0, 1], before weights."""
    matched: Matched
    dropped: dict[str, int] = Field(default_factory=dict)
    """Parts that cost themselves, counted by reason (`inverted_box`, `dangling_relationship`,
    …)."""
    truncated: bool = False
    """With `invalid_json`: the text stops before its JSON, or its last line, ends."""
    credit: Credit | None = Field(default=None, exclude_if=lambda credit: credit is None)
    """Where the request asks for it."""


class GroupError(Message):
    """Why a group of a request has no rewards, while the other groups have theirs."""

    detail: str
    retryable: bool = False
    """Whether sending the same group again can help."""


class ScoredGroup(Message):
    """The rewards of one group, in the order of its completions."""

    group_id: str
    rewards: list[Reward]
    """Empty where there is an `error`."""
    error: GroupError | None = None


class RewardResponse(Versioned):
    """Answer of `POST /v1/rewards`, groups in the order of the request.

    Example: `tests/contract/golden/reward_response.json`
    """

    rubric: str
    rubric_version: str
    groups: list[ScoredGroup]
