"""What happened in a run, in the words of whoever saw it: the lines of `events.jsonl`."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from services.run_folder.paths import RunFolder

EventKind = Literal[
    "started",
    "published",
    "skipped",
    "checkpoint",
    "evaluated",
    "rolled_back",
    "server_joined",
    "server_died",
    "quarantined",
    "recovered",
    "finished",
    "stopped",
    "failed",
]


class Event(BaseModel):
    """A line of `events.jsonl`.

    Example: `{"schema": 1, "time": 1753456789.5, "step": 12, "kind": "server_died", "text":
    "rollout-1 is gone"}`
    """

    model_config = ConfigDict(frozen=True, validate_by_name=True, serialize_by_alias=True)

    schema_: Literal[1] = Field(default=1, alias="schema")
    time: float
    """Unix seconds."""
    step: int
    """That it belongs to: a resume from an earlier step takes it back, as it does a step's line."""
    kind: EventKind | str
    """One of `EventKind`, or of a later release."""
    text: str
    """A sentence for people; it may hold names from anywhere."""


def read_events(run: Path) -> list[Event]:
    """A run's events, in the order in which they were written.

    A line that is half written, damaged or of a later schema is passed over. Events are few: about
    three a step.

    Args:
        run: The run's folder. One of an earlier release has none.
    """
    try:
        text = RunFolder(run).events.read_bytes()
    except FileNotFoundError:
        return []
    return [event for line in text.split(b"\n")[:-1] if (event := _parsed(line)) is not None]


def _parsed(line: bytes) -> Event | None:
    try:
        return Event.model_validate_json(line)
    except ValidationError:
        return None
