"""The lines of the index of a run's groups, and which of them are looked for."""

from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from pydantic_core import to_json

from scene_graph.graph import normalise_name
from services.run_folder.records import GroupState

RecordFile = Annotated[
    str, StringConstraints(pattern=r"^step-\d{6,}\.(rank\d+|unused)\.jsonl(\.gz)?$")
]


class IndexLine(BaseModel):
    """A group in a line of `rollouts/index.rankR.jsonl`, about 500 bytes.

    Example: `{"schema": 1, "step": 3, "position": 14, "group_id": "demo-e0-r9", "file":
    "step-000003.rank0.jsonl.gz", "offset": 0, "length": 8211, "image": "9f86…0a08", "row": 9,
    "state": "trained", "reason": "", "mean": 2.1, "std": 0.4, "min": 1.0, "max": 3.0, "statuses":
    {"ok": 7, "invalid_json": 1}, "predicates": ["on"], "objects": ["cup", "table"], "truncated": 1,
    "versions": [3]}`
    """

    # A field that a later release adds is passed over; a line of another schema is none of these.
    model_config = ConfigDict(frozen=True, validate_by_name=True, serialize_by_alias=True)

    schema_: Literal[1] = Field(default=1, alias="schema")
    step: int
    position: int
    """Place in the run's data order."""
    group_id: str
    file: RecordFile | None
    """The record's file, in `rollouts/`; None where no answer ever came."""
    offset: Annotated[int, Field(ge=0)] = 0
    """Bytes before the record in its file."""
    length: Annotated[int, Field(ge=0)] = 0
    """Bytes of the record: a gzip member of its own, or, in files of earlier releases, a line."""
    image: str | None = None
    """Its sha256."""
    row: int
    """The row of the dataset."""
    state: GroupState
    reason: str = ""
    """Why a group is dead."""
    mean: float | None = None
    """Mean of the rewards; None without rewards, as are the three below."""
    std: float | None = None
    min: float | None = None
    max: float | None = None
    statuses: dict[str, int] = {}
    """Completions by `Reward.status`."""
    predicates: list[str] = []
    """That the answers name, normalised; the most frequent ones where they are many."""
    objects: list[str] = []
    """Names of objects, in the same way."""
    truncated: int = 0
    """Completions that reached `sampling.max_tokens`."""
    versions: list[int] = []
    """That sampled a token of the group, in order."""


class IndexNumbers(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The numbers of a line that every look at it needs: ten times as fast to read as all of it."""

    schema_: Literal[1] = msgspec.field(name="schema")
    step: int
    position: int
    mean: float | None = None
    std: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutFilter:
    """Which groups are looked for: those that fit everything that is not None.

    Example: `RolloutFilter(predicate="on", reward_max=1.0).fits(line)`
    """

    step_from: int | None = None
    step_to: int | None = None
    """This step is still one of them."""
    reward_min: float | None = None
    """Bound of a group's mean reward, as is `reward_max`."""
    reward_max: float | None = None
    std_min: float | None = None
    """The least standard deviation of a group's rewards."""
    state: GroupState | None = None
    status: str | None = None
    """The status of at least one completion."""
    predicate: str | None = None
    object: str | None = None
    image: str | None = None
    """The sha256, or its beginning."""
    group_id: str | None = None
    truncated: bool | None = None
    """Whether a completion reached `sampling.max_tokens`."""
    version: int | None = None
    text: str | None = None
    """In an answer, in letters of either case. It is looked for in the records: only in those that
    are still there, and it costs the time to read them."""

    def fits_numbers(self, line: "IndexNumbers | IndexLine") -> bool:
        """Whether a line fits the bounds of steps, reward and deviation."""
        return (
            _within(line.step, self.step_from, self.step_to)
            and _within(line.mean, self.reward_min, self.reward_max)
            and _within(line.std, self.std_min, None)
        )

    def fits(self, line: IndexLine) -> bool:
        """Whether a line fits all but `text`."""
        return (
            self.fits_numbers(line)
            and self.state in (None, line.state)
            and (self.status is None or line.statuses.get(self.status, 0) > 0)
            and (self.predicate is None or normalise_name(self.predicate) in line.predicates)
            and (self.object is None or normalise_name(self.object) in line.objects)
            and (self.image is None or (line.image or "").startswith(self.image))
            and self.group_id in (None, line.group_id)
            and self.truncated in (None, line.truncated > 0)
            and (self.version is None or self.version in line.versions)
        )

    @property
    def needs_more(self) -> bool:
        """Whether more than a line's numbers decides."""
        names = (self.state, self.status, self.predicate, self.object, self.image, self.group_id)
        return any(each is not None for each in (*names, self.truncated, self.version))

    @property
    def needles(self) -> list[bytes]:
        """What stands in every line that fits, as its bytes: others need not be read as JSON."""
        names = [normalise_name(name) for name in (self.predicate, self.object) if name is not None]
        words = [*names, self.group_id, self.status, self.state]
        return [to_json(word) for word in words if word is not None]


EVERY_GROUP = RolloutFilter()


def _within(value: float | None, low: float | None, high: float | None) -> bool:
    """Whether a value is between bounds, both of them allowed; None is in no bounds but none."""
    if value is None:
        return low is None and high is None
    return (low is None or value >= low) and (high is None or value <= high)
