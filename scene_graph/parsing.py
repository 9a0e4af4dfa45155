"""Model text to scene graph. Bad text is data: nothing here raises because of what a model wrote.

A bad part costs itself, not the sample: it is dropped and counted by reason. Only what is wrong as
a whole gives a status other than `ok`. References pass the same `clean_graph`.
"""

import json
import math
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn

from scene_graph.boxes import space_scale
from scene_graph.graph import Relationship, SceneGraph, SceneObject, normalise_name
from scene_graph.json_limits import is_unfinished, nesting_depth

Status = Literal["ok", "no_answer", "invalid_json", "schema_violation", "too_large"]

MAX_COORDINATE = 1e6
"""Larger numbers are no box in any space; products of them would overflow."""

_EMPTY = SceneGraph(objects=(), relationships=())
_FENCE_START = re.compile(r"```[A-Za-z0-9_-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Beyond any of these a completion is `too_large`, before any work that grows with it."""

    num_bytes: int = 262_144
    nesting: int = 32
    objects: int = 500
    relationships: int = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedCompletion:
    """What a completion says.

    Example: that of `{"objects": [], "relationships": []}` has status `ok` and an empty graph.
    """

    status: Status
    graph: SceneGraph = _EMPTY
    """Boxes in fractions, names normalised; empty unless `ok`."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Reason to count: `malformed_object`, `non_finite_box`, `inverted_box`, `duplicate_id`,
    `malformed_relationship`, `dangling_relationship`, `repeated_triplet`."""
    truncated: bool = False
    """With `invalid_json`: the text stops inside the JSON."""
    has_think_tags: bool = False
    """It starts with one `<think>…</think>`."""
    has_answer_tags: bool = False
    """All of it, after thinking, is one `<answer>…</answer>`."""


@dataclass(frozen=True, slots=True)
class _Answer:
    text: str
    finished: bool
    """A closing tag or fence shows that the writer meant to stop here."""
    has_think_tags: bool
    has_answer_tags: bool


_DEFAULT_LIMITS = Limits()


def parse_completion(
    text: str, box_space: str, limits: Limits = _DEFAULT_LIMITS
) -> ParsedCompletion:
    """Read the scene graph in a completion, in time linear in its length.

    Args:
        text: All that the model wrote.
        box_space: `relative_1000`, `relative_1` or `pixels:WxH`: the space it writes boxes in.
        limits: What is too large.

    Raises:
        ValueError: `box_space` is not a box space.
    """
    space_scale(box_space)  # a wrong space is the caller's fault, whatever the text
    data = text.encode("utf-8", "surrogatepass")
    if len(data) > limits.num_bytes:
        return ParsedCompletion(status="too_large")
    answer = _find_answer(text)
    status, raw, dropped, truncated = _read_json(answer, limits)
    graph, dropped_later = clean_graph(raw, box_space)
    return ParsedCompletion(
        status=status,
        graph=graph,
        dropped=dict(dropped + dropped_later),
        truncated=truncated,
        has_think_tags=answer.has_think_tags,
        has_answer_tags=answer.has_answer_tags,
    )


def clean_graph(graph: SceneGraph, box_space: str) -> tuple[SceneGraph, Counter[str]]:
    """Normalise names, bring boxes to fractions, drop what cannot be right.

    Of objects with the same id and of equal triplets the first one stays. An object goes when its
    box is inverted, empty, not finite or beyond `MAX_COORDINATE`, and with it its relationships.

    Args:
        graph: Boxes in `box_space`.
        box_space: See `scene_graph.boxes`.

    Returns:
        The graph with boxes in fractions (coordinates outside 0..1 stay as they are), and the
        number of dropped parts by reason.
    """
    dropped: Counter[str] = Counter()
    width, height = map(float, space_scale(box_space)[:2])
    objects: dict[str, SceneObject] = {}
    for item in graph.objects:
        name = normalise_name(item.id)
        reason = _object_fault(name, item.bbox, objects)
        if reason:
            dropped[reason] += 1
        else:
            x1, y1, x2, y2 = item.bbox
            box = (x1 / width, y1 / height, x2 / width, y2 / height)
            objects[name] = SceneObject(id=name, bbox=box)
    # A dict keeps the order and drops what is repeated.
    relationships: dict[Relationship, None] = {}
    for edge in graph.relationships:
        clean = Relationship(
            subject=normalise_name(edge.subject),
            predicate=normalise_name(edge.predicate),
            object=normalise_name(edge.object),
        )
        reason = _relationship_fault(clean, objects, relationships)
        if reason:
            dropped[reason] += 1
        else:
            relationships[clean] = None
    return SceneGraph(objects=tuple(objects.values()), relationships=tuple(relationships)), dropped


def _object_fault(
    name: str, bbox: tuple[float, float, float, float], known: dict[str, SceneObject]
) -> str | None:
    x1, y1, x2, y2 = bbox
    if not normalise_name(SceneObject(id=name, bbox=bbox).category):
        return "malformed_object"
    if not all(math.isfinite(c) and abs(c) <= MAX_COORDINATE for c in bbox):
        return "non_finite_box"
    if x2 <= x1 or y2 <= y1:
        return "inverted_box"
    return "duplicate_id" if name in known else None


def _relationship_fault(
    edge: Relationship, objects: dict[str, SceneObject], known: dict[Relationship, None]
) -> str | None:
    if not edge.predicate:
        return "malformed_relationship"
    if edge.subject not in objects or edge.object not in objects:
        return "dangling_relationship"
    return "repeated_triplet" if edge in known else None


def _find_answer(text: str) -> _Answer:
    """The text of the answer: inside its tags, else all that follows the thinking."""
    rest = text.strip()
    has_think = False
    if rest.startswith("<think>"):
        _, closing, after = rest.partition("</think>")
        if closing:  # an answer that is only mentioned while thinking is not the answer
            has_think, rest = True, after.strip()
    before, opening, inside = rest.partition("<answer>")
    inside, closing, after = inside.partition("</answer>")
    tagged = bool(opening and closing) and not before and not after and "<answer>" not in inside
    body, fenced = _without_fence(inside if opening else rest)
    return _Answer(body, bool(closing) or fenced, has_think, tagged)


def _without_fence(text: str) -> tuple[str, bool]:
    """The text without a Markdown code fence around it, and whether the fence was closed."""
    text = text.strip()
    start = _FENCE_START.match(text)
    if not start:
        return text, False
    body = text[start.end() :]
    return body.removesuffix("```").strip(), body.endswith("```")


def _read_json(answer: _Answer, limits: Limits) -> tuple[Status, SceneGraph, Counter[str], bool]:
    """Status, graph as written, dropped parts, and whether the JSON is cut off."""
    nothing: Counter[str] = Counter()
    if "{" not in answer.text and "[" not in answer.text:
        return "no_answer", _EMPTY, nothing, False
    data = answer.text.encode("utf-8", "surrogatepass")
    if nesting_depth(data) > limits.nesting:
        return "too_large", _EMPTY, nothing, False
    try:
        # Integers as floats: Python refuses to read an int of more than 4300 digits.
        value = json.loads(answer.text, parse_int=float, parse_constant=_refuse_constant)
    except ValueError:
        truncated = not answer.finished and is_unfinished(data)
        return "invalid_json", _EMPTY, nothing, truncated
    if not isinstance(value, dict):
        return "schema_violation", _EMPTY, nothing, False
    objects, relationships = value.get("objects"), value.get("relationships")
    if not isinstance(objects, list) or not isinstance(relationships, list):
        return "schema_violation", _EMPTY, nothing, False
    if len(objects) > limits.objects or len(relationships) > limits.relationships:
        return "too_large", _EMPTY, nothing, False
    graph = SceneGraph(
        objects=tuple(o for o in map(_object, objects) if o),
        relationships=tuple(r for r in map(_relationship, relationships) if r),
    )
    dropped = {
        "malformed_object": len(objects) - len(graph.objects),
        "malformed_relationship": len(relationships) - len(graph.relationships),
    }
    return "ok", graph, +Counter(dropped), False


def _object(value: Any) -> SceneObject | None:
    """One entry of `objects`, or None when its shape is wrong. Unknown keys are ignored."""
    if not isinstance(value, dict) or not isinstance(value.get("id"), str):
        return None
    box = value.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(c, float) for c in box):
        return None  # every number of the JSON is a float here, true and false are not
    return SceneObject(id=value["id"], bbox=(box[0], box[1], box[2], box[3]))


def _relationship(value: Any) -> Relationship | None:
    if not isinstance(value, dict):
        return None
    parts = [value.get(key) for key in ("subject", "predicate", "object")]
    if not all(isinstance(part, str) for part in parts):
        return None
    return Relationship(subject=str(parts[0]), predicate=str(parts[1]), object=str(parts[2]))


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
