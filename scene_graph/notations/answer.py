"""What the readers of all notations take and give."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from scene_graph.cleaning import ObjectLike, RelationshipLike

NotationName = Literal["json", "compact"]
Status = Literal["ok", "no_answer", "invalid_json", "schema_violation", "too_large"]
"""`invalid_json` is what is not in the notation asked for, whichever that is."""
Span = tuple[int, int]
"""First character, and the one after the last"""


class Answer(NamedTuple):
    """The part of a completion that should be in the notation."""

    text: str
    finished: bool
    """A closing tag or fence shows that the writer meant to stop here."""
    has_think_tags: bool
    has_answer_tags: bool


class Lists(NamedTuple):
    """The two lists of an answer, or why there are none; None for entries of the wrong shape."""

    status: Status
    objects: Sequence[ObjectLike | None] = ()
    relationships: Sequence[RelationshipLike | None] = ()
    truncated: bool = False
