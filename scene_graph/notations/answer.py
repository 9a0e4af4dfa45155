"""What the readers of all notations take and give."""

import json
from collections.abc import Sequence
from typing import Literal, NamedTuple

from scene_graph.cleaning import ObjectLike, RelationshipLike

NotationName = Literal["json", "compact"]
Status = Literal["ok", "no_answer", "invalid_json", "schema_violation", "too_large"]
"""`invalid_json` is what is not in the notation asked for, whichever that is."""
MAX_OBJECTS = 100
"""That a sampler is let write"""
MAX_RELATIONSHIPS = 200
COORDINATE = r"(0|[1-9][0-9]{0,4})(\.[0-9]{1,3}){0,1}"
"""A pattern: thousandths and pixels are whole numbers, `relative_1` has three decimals."""
Span = tuple[int, int]
"""First character, and the one after the last"""


def pattern_rule(name: str, pattern: str) -> str:
    """A rule of a grammar, by a regular expression.

    As EBNF a part that comes up to n times costs xgrammar 0.2.8 up to 20 ms for a token; so
    written, some microseconds. There a `?` after a group reads too much; `{0,1}` does not.
    """
    return f"{name} ::= Regex({json.dumps(pattern)})"


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
