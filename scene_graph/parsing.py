"""Model text to scene graph. Bad text is data: nothing here raises because of what a model wrote.

A bad part alone is dropped, not the sample (`scene_graph.cleaning`). Only what is wrong as a whole
gives a status other than `ok`.
"""

from dataclasses import dataclass, field

from scene_graph.boxes import BoxSpace
from scene_graph.cleaning import Task, clean_columns
from scene_graph.graph import GraphColumns, SceneGraph
from scene_graph.json_limits import json_shape
from scene_graph.notations.answer import Answer, Lists, NotationName, Status
from scene_graph.notations.json_text import utf8
from scene_graph.notations.notation import NOTATIONS


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
    """`invalid_json` where the text is not in the notation, whichever it is."""
    columns: GraphColumns
    """Names normalised; empty unless `ok`."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Reason to count: `malformed_object`, `non_finite_box`, `inverted_box`, `duplicate_id`,
    `malformed_relationship`, `dangling_relationship`, `repeated_triplet`."""
    truncated: bool = False
    """With `invalid_json`: the text stops before its JSON, or its last line, ends."""
    has_think_tags: bool = False
    """Before the answer stands thinking, and nothing else: see `find_answer`."""
    has_answer_tags: bool = False
    """All of it, after thinking, is one `<answer>…</answer>`."""
    notation: NotationName = "json"
    """That it was read as"""

    @property
    def graph(self) -> SceneGraph:
        """Boxes in fractions (coordinates outside 0..1 stay as they are); see `to_graph`."""
        return self.columns.to_graph()


_DEFAULT_LIMITS = Limits()


def parse_completion(
    text: str,
    box_space: BoxSpace,
    limits: Limits = _DEFAULT_LIMITS,
    task: Task = "sgg",
    notation: NotationName = "json",
) -> ParsedCompletion:
    """Read the scene graph in a completion, in time linear in its length.

    Args:
        text: All that the model wrote.
        box_space: The space it writes boxes in.
        limits: What is too large.
        task: `det` looks at no relationships. `cls` looks at no objects: the ends of its
            relationships are names, with or without a number.
        notation: What it was asked to write; text in another has no graph.
    """
    if len(text) > limits.num_bytes or len(utf8(text)) > limits.num_bytes:
        return ParsedCompletion(status="too_large", columns=GraphColumns(), notation=notation)
    answer = find_answer(text)
    lists = _within(limits, NOTATIONS[notation].read(answer, task))
    columns, dropped = clean_columns(lists.objects, lists.relationships, box_space.scale, task)
    if notation == "json" and _is_too_deep(answer.text, lists, dropped, limits.nesting):
        return ParsedCompletion(status="too_large", columns=GraphColumns(), notation=notation)
    return ParsedCompletion(
        status=lists.status,
        columns=columns,
        dropped=dropped,
        truncated=lists.truncated,
        has_think_tags=answer.has_think_tags,
        has_answer_tags=answer.has_answer_tags,
        notation=notation,
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


def _within(limits: Limits, lists: Lists) -> Lists:
    if len(lists.objects) > limits.objects or len(lists.relationships) > limits.relationships:
        return Lists("too_large")
    return lists


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
    return json_shape(utf8(text)).nesting > limit
