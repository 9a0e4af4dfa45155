"""Model text to scene graph. Bad text is data: nothing here raises because of what a model wrote.

A bad part alone is dropped, not the sample (`scene_graph.cleaning`). Only what is wrong as a whole
gives a status other than `ok`.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, NoReturn

import msgspec

from scene_graph.boxes import BoxSpace
from scene_graph.cleaning import (
    ObjectLike,
    RelationshipLike,
    Task,
    clean_columns,
    read_object,
    read_relationship,
)
from scene_graph.graph import GraphColumns, SceneGraph
from scene_graph.json_limits import json_shape

Status = Literal["ok", "no_answer", "invalid_json", "schema_violation", "too_large"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Beyond any of these a completion is `too_large`, before any work that grows with it."""

    num_bytes: int = 262_144
    nesting: int = 32
    objects: int = 500
    relationships: int = 2000


@dataclass(slots=True, kw_only=True)
class ParsedCompletion:
    """What a completion says. Not frozen, for speed; nothing changes it.

    Example: that of `{"objects": [], "relationships": []}` has status `ok` and an empty graph.
    """

    status: Status
    columns: GraphColumns
    """Names normalised; empty unless `ok`."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Reason to count: `malformed_object`, `non_finite_box`, `inverted_box`, `duplicate_id`,
    `malformed_relationship`, `dangling_relationship`, `repeated_triplet`."""
    truncated: bool = False
    """With `invalid_json`: the text stops inside the JSON."""
    has_think_tags: bool = False
    """Before the answer stands thinking, and nothing else: see `find_answer`."""
    has_answer_tags: bool = False
    """All of it, after thinking, is one `<answer>…</answer>`."""

    @property
    def graph(self) -> SceneGraph:
        """Boxes in fractions (coordinates outside 0..1 stay as they are); see `to_graph`."""
        return self.columns.to_graph()


class Answer(NamedTuple):
    """The part of a completion that should be JSON."""

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


_DEFAULT_LIMITS = Limits()


def parse_completion(
    text: str, box_space: BoxSpace, limits: Limits = _DEFAULT_LIMITS, task: Task = "sgg"
) -> ParsedCompletion:
    """Read the scene graph in a completion, in time linear in its length.

    Args:
        text: All that the model wrote.
        box_space: The space it writes boxes in.
        limits: What is too large.
        task: `det` looks at no relationships. `cls` looks at no objects: the ends of its
            relationships are names, with or without a number.
    """
    if len(text) > limits.num_bytes or len(_bytes(text)) > limits.num_bytes:
        return ParsedCompletion(status="too_large", columns=GraphColumns())
    answer = find_answer(text)
    lists = _read_lists(answer, limits, task)
    columns, dropped = clean_columns(lists.objects, lists.relationships, box_space.scale, task)
    if _is_too_deep(answer.text, lists, dropped, limits.nesting):
        return ParsedCompletion(status="too_large", columns=GraphColumns())
    return ParsedCompletion(
        status=lists.status,
        columns=columns,
        dropped=dropped,
        truncated=lists.truncated,
        has_think_tags=answer.has_think_tags,
        has_answer_tags=answer.has_answer_tags,
    )


def find_answer(text: str) -> Answer:
    """The text of the answer: inside its tags, else all that follows the thinking.

    All up to the last `</think>` is thinking: an answer that is only mentioned there is none. It is
    well-formed where it begins with `<think>`, or where that tag is nowhere in it, because a chat
    template may have opened it at the end of the prompt; and where no second one is opened.
    """
    thinking, closing, rest = text.rpartition("</think>")
    first, _, more = thinking.strip().removeprefix("<think>").partition("</think>")
    has_think = bool(closing) and "<think>" not in first and "<think>" not in more
    rest = rest.strip()
    before, opening, inside = rest.partition("<answer>")
    inside, closed, after = inside.partition("</answer>")
    tagged = bool(opening and closed) and not before and not after and "<answer>" not in inside
    body, fenced = _without_fence(inside if opening else rest)
    return Answer(body, bool(closed) or fenced, has_think, tagged and has_think == bool(closing))


def _without_fence(text: str) -> tuple[str, bool]:
    """The text without a Markdown code fence around it, and whether the fence was closed."""
    text = text.strip()
    closed = text.endswith("```")
    if text.startswith("```"):
        text = text[3:].lstrip(_FENCE_INFO)
    return text.removesuffix("```").strip(), closed


_FENCE_INFO = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-"
"""What may name the language after an opening fence."""


def json_value(text: str, decoder: json.JSONDecoder | None = None) -> Any:
    """The JSON in the text of an answer.

    Where it is none as it stands, code fences, the word json and tags of the answer are taken out
    of it, as R1-SGG's published code does (arXiv 2504.13617); but not out of strings, so that names
    stay whole.

    Raises:
        ValueError: It is no JSON in either way; says where it breaks as it stands.
        RecursionError: It is nested deeper than the decoder can follow.
    """
    decoder = decoder or _DECODER
    try:
        return decoder.decode(text)
    except ValueError as error:
        if not any(mark in text for mark in _MARKS):
            raise
        try:
            return decoder.decode(_NO_JSON.sub(r"\1 ", text))
        except ValueError:
            raise error from None


_MARKS = ("```", "json", "<answer>", "</answer>")
_NO_JSON = re.compile(rf'("(?:[^"\\]++|\\.)*+"?)|{"|".join(_MARKS)}', re.DOTALL)
"""What is no part of JSON; or a string, closed or not, which stays."""


def _read_lists(answer: Answer, limits: Limits, task: Task) -> Lists:
    lists = read_well_formed(answer.text, task) or read_any(answer, task)
    if len(lists.objects) > limits.objects or len(lists.relationships) > limits.relationships:
        return Lists("too_large")
    return lists


class _Object(msgspec.Struct, gc=False):
    id: str
    bbox: tuple[float, float, float, float]


class _Relationship(msgspec.Struct, gc=False):
    subject: str
    predicate: str
    object: str


class _Objects(msgspec.Struct, gc=False):
    objects: list[_Object]


class _Relationships(msgspec.Struct, gc=False):
    relationships: list[_Relationship]


class _Graph(msgspec.Struct, gc=False):
    objects: list[_Object]
    relationships: list[_Relationship]


_DECODERS: dict[Task, msgspec.json.Decoder[Any]] = {
    "sgg": msgspec.json.Decoder(_Graph),
    "det": msgspec.json.Decoder(_Objects),
    "cls": msgspec.json.Decoder(_Relationships),
}


def read_well_formed(text: str, task: Task) -> Lists | None:
    """What honest text says, faster than `read_any`; None where any part has the wrong shape."""
    try:
        found = _DECODERS[task].decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return None
    return Lists("ok", getattr(found, "objects", ()), getattr(found, "relationships", ()))


def read_any(answer: Answer, task: Task) -> Lists:
    """What any text says, or why it says nothing."""
    if "{" not in answer.text and "[" not in answer.text:
        return Lists("no_answer")
    try:
        value = json_value(answer.text)
    except ValueError:
        truncated = not answer.finished and json_shape(_bytes(answer.text)).unclosed > 0
        return Lists("invalid_json", truncated=truncated)
    except RecursionError:  # the decoder stops at Python's own limit, far above ours
        return Lists("too_large")
    if type(value) is not dict:
        return Lists("schema_violation")
    objects = [] if task == "cls" else value.get("objects")
    relationships = [] if task == "det" else value.get("relationships")
    if type(objects) is not list or type(relationships) is not list:
        return Lists("schema_violation")
    return Lists("ok", list(map(read_object, objects)), list(map(read_relationship, relationships)))


def _is_too_deep(text: str, lists: Lists, dropped: dict[str, int], limit: int) -> bool:
    """Whether brackets are nested deeper than `limit`.

    A well-formed object has two brackets and a relationship one, so only the brackets beyond those
    can nest: counting them spares honest text the closer look.
    """
    brackets = text.count("{") + text.count("[")
    if brackets <= limit:
        return False
    objects = len(lists.objects) - dropped.get("malformed_object", 0)
    relationships = len(lists.relationships) - dropped.get("malformed_relationship", 0)
    if brackets - 2 * objects - relationships < limit:
        return False
    return json_shape(_bytes(text)).nesting > limit


def refuse_constant(name: str) -> NoReturn:
    """For a decoder: NaN and the infinities, which Python would read, are not JSON."""
    raise ValueError(f"{name} is not JSON")


# Integers as floats: Python refuses to read an int of more than 4300 digits.
_DECODER = json.JSONDecoder(parse_int=float, parse_constant=refuse_constant)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
