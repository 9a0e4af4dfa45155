"""What the model is asked, and the text that answers it."""

import hashlib
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from string import Template

import numpy as np

from scene_data.reading.refusal import refusal
from scene_data.vocabulary import SHIPPED as SHIPPED_VOCABULARIES
from scene_data.vocabulary import Vocabulary, load_vocabulary
from scene_graph.boxes import RELATIVE_1, BoxSpace
from scene_graph.cleaning import Task
from scene_graph.graph import SceneGraph, SceneObject
from scene_graph.notations.answer import NotationName
from scene_graph.notations.notation import NOTATIONS
from services.schemas.common import ChatMessage, ImagePart, TextPart

SHIPPED = ("toy", "open", "closed")

# Short: the toy model's context is nearly all image and answer.
_TOY: Mapping[Task, str] = {
    "sgg": "scene graph:",
    "det": "objects:",
    "cls": "relationships:",
}

_SGG = """\
Describe this image as a scene graph: the objects that you see and how they relate to each other.

{order}
{think}<answer>{{"objects":[{{"id":"name.1","bbox":[x1,y1,x2,y2]}}],\
"relationships":[{{"subject":"name.1","predicate":"how they relate","object":"name.2"}}]}}</answer>

- "id" is the object's name in plain English, a dot and a number; no id is used twice.
- "bbox" is its box, upper left corner (x1, y1) to lower right corner (x2, y2), {unit}.
- "subject" and "object" are ids from the list of objects; "predicate" is a short phrase.
- List every object that takes part in a relationship, and only what can be seen."""

_DET = """\
List the objects that you see in this image, each with its box.

{order}
{think}<answer>{{"objects":[{{"id":"name.1","bbox":[x1,y1,x2,y2]}}]}}</answer>

- "id" is the object's name in plain English, a dot and a number; no id is used twice.
- "bbox" is its box, upper left corner (x1, y1) to lower right corner (x2, y2), {unit}.
- List every object once, and only what can be seen."""

_CLS = """\
Say how the objects that you see in this image relate to each other.

{order}
{think}<answer>{{"relationships":[{{"subject":"name.1","predicate":"how they relate",\
"object":"name.2"}}]}}</answer>

- "subject" and "object" are names in plain English, a dot and a number, which tells objects of \
the same name apart.
- "predicate" is a short phrase.
- List every relationship once, and only what can be seen."""

_LABELLED = """\
- Each object has a line: a label, its name in plain English{and_box}. Labels are A to Z, then AA, \
AB and so on; no label is used twice."""
_LINES_BOX = """\
- x1 y1 x2 y2 is the box, upper left corner (x1, y1) to lower right corner (x2, y2), {unit}."""
_LINES_RELATED = """\
- Each relationship has a line: the label of an object, a short phrase, the label of another."""
_LINES_END = "The last line is the word end."

_SGG_LINES = f"""\
Describe this image as a scene graph: the objects that you see and how they relate to each other.

{{order}}

{_LABELLED.format(and_box=" and its box")}
{_LINES_BOX}
{_LINES_RELATED}
- List every object that takes part in a relationship, and only what can be seen. {_LINES_END}"""

_DET_LINES = f"""\
List the objects that you see in this image, each with its box.

{{order}}

{_LABELLED.format(and_box=" and its box")}
{_LINES_BOX}
- List every object once, and only what can be seen. {_LINES_END}"""

_CLS_LINES = f"""\
Say how the objects that you see in this image relate to each other.

{{order}}

{_LABELLED.format(and_box="")}
{_LINES_RELATED}
- List every relationship once, and only what can be seen. {_LINES_END}"""

_OPEN: Mapping[NotationName, Mapping[Task, str]] = {
    "json": {"sgg": _SGG, "det": _DET, "cls": _CLS},
    "compact": {"sgg": _SGG_LINES, "det": _DET_LINES, "cls": _CLS_LINES},
}

_LINES_OBJECTS = "objects\nA name x1 y1 x2 y2\nB name x1 y1 x2 y2"
_LINES_EDGES = "relationships\nA how they relate B"
_LINES: Mapping[Task, str] = {
    "sgg": f"{_LINES_OBJECTS}\n{_LINES_EDGES}\nend",
    "det": f"{_LINES_OBJECTS}\nend",
    "cls": f"objects\nA name\nB name\n{_LINES_EDGES}\nend",
}
_ORDERS: Mapping[NotationName, str] = {
    "json": "Write one JSON object inside <answer> and </answer>, and nothing else:",
    "compact": "Write lines of this form inside <answer> and </answer>, and nothing else:",
}
_THINK_FIRST = """\
First think inside <think> and </think>: go through what can be seen{relations}. Then """

_CLOSED_OBJECTS = "\n\nUse these names for objects, and no others: {}."
_CLOSED_PREDICATES = "\n\nUse these predicates, and no others: {}."

_UNITS = {
    "relative_1000": "in thousandths of the image's width and height, whole numbers from 0 to 1000",
    "relative_1": "as fractions of the image's width and height, from 0 to 1",
}
_PIXELS = "in pixels of a {width:.0f}x{height:.0f} image, whole numbers"


def prompt_messages(
    template: str,
    box_space: BoxSpace,
    vocabulary: str | None = None,
    *,
    thinking: bool = False,
    task: Task = "sgg",
    notation: NotationName = "json",
) -> list[ChatMessage]:
    """The chat that asks for an image's scene graph, or for a part of it.

    Args:
        template: `toy` for toy-scenes and the tiny model; for real ones `open` (any names),
            `closed`, or the path of a text file with one's own instruction, in which `$objects`,
            `$predicates`, `$boxes` and `$order` are filled in (`docs/data.md`).
        box_space: The space that boxes are to be written in.
        vocabulary: With `closed` or a file, whose names may be used (`scene_data.vocabulary`).
        thinking: Ask for `<think>…</think>` before the answer.
        task: What is asked for.
        notation: What it is to be written in. In a file, `$order` says so: with `compact` it has to
            be there.

    Raises:
        InvalidInputError: The template's file cannot be read, has a placeholder that there is not,
            or asks for another notation; or the vocabulary's cannot be read.
    """
    order = _order(task, notation, thinking=thinking)
    names = load_vocabulary(vocabulary) if vocabulary is not None else None
    if template == "toy":
        wanted = _TOY[task] if notation == "json" else f"compact {_TOY[task]}"
        text = f"Think, then {wanted}" if thinking else wanted.capitalize()
    elif template in SHIPPED:
        think = "<think>...</think>\n" if thinking else ""
        text = _OPEN[notation][task].format(unit=_unit(box_space), order=order, think=think)
    else:
        _check_notation(template, notation)
        text = _filled(template, _unit(box_space), order, names)
    if names is not None and template in SHIPPED:
        text += _CLOSED_OBJECTS.format(", ".join(names.objects))
        if task != "det":
            text += _CLOSED_PREDICATES.format(", ".join(names.predicates))
    return [ChatMessage(role="user", content=[ImagePart(), TextPart(text=text)])]


def _order(task: Task, notation: NotationName, *, thinking: bool) -> str:
    """The order to write an answer; of the compact notation with its form."""
    order = _ORDERS[notation]
    if thinking:
        relations = "" if task == "det" else " and how it relates"
        order = _THINK_FIRST.format(relations=relations) + order[0].lower() + order[1:]
    if notation == "json":
        return order
    think = "<think>...</think>\n" if thinking else ""
    return f"{order}\n{think}<answer>\n{_LINES[task]}\n</answer>"


def _check_notation(path: str, notation: NotationName) -> None:
    """Refuse the file of an instruction that asks for another notation, or for none."""
    if notation == "json":
        return
    text, said = _read(path), "data.notation = 'compact'"
    if _JSON.search(text):
        raise refusal(path, f"an instruction that asks for JSON, with {said}", _USE_ORDER)
    if "order" not in Template(text).get_identifiers():
        raise refusal(path, f"an instruction without a notation, with {said}", _USE_ORDER)


_JSON = re.compile(r"json|\{\s*\"", re.IGNORECASE)
_USE_ORDER = "write $order, which asks for the run's notation, where the form of the answer belongs"


def check_instruction(
    template: str, vocabulary: str | None, notation: NotationName = "json"
) -> None:
    """See that prompts can be made, before anything is loaded.

    Raises:
        InvalidInputError: They cannot; the message names the file and what is wrong in it.
    """
    prompt_messages(template, BoxSpace.pixels(1, 1), vocabulary, notation=notation)


def instruction_digest(template: str, vocabulary: str | None) -> str | None:
    """SHA-256 over what the files of an instruction say, which may change; None without files.

    Args:
        template: As `prompt_messages` takes it.
        vocabulary: The same.

    Raises:
        InvalidInputError: One of them cannot be read.
    """
    parts = [] if template in SHIPPED else [_read(template)]
    if vocabulary is not None and vocabulary not in SHIPPED_VOCABULARIES:
        names = load_vocabulary(vocabulary)
        parts += ["\n".join(names.objects), "\n".join(names.predicates)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest() if parts else None


def answer_text(
    graph: SceneGraph,
    box_space: BoxSpace,
    *,
    width: int,
    height: int,
    thinking: str | None = None,
    task: Task = "sgg",
    notation: NotationName = "json",
) -> str:
    """The right answer for an image: SFT's target. The same graph always gives the same text.

    Args:
        graph: Boxes in pixels of the original image.
        box_space: Space to write boxes in; integers, but for `relative_1` (three decimals).
        width: The original image's, in pixels.
        height: The original image's, in pixels.
        thinking: What comes before the answer, in tags of its own.
        task: What is answered. Triplets of names keep their numbers: without them two of the same
            names would be one.
        notation: What it is written in.
    """
    pixels = np.array([item.bbox for item in graph.objects], dtype=np.float64)
    boxes = BoxSpace.pixels(width, height).converted(pixels, box_space)
    digits = 3 if box_space == RELATIVE_1 else None
    objects = tuple(
        SceneObject(id=item.id, bbox=tuple(round(float(v), digits) for v in box))  # type: ignore[arg-type]
        for item, box in zip(graph.objects, boxes, strict=True)
    )
    written = SceneGraph(objects=objects, relationships=graph.relationships)
    answer = NOTATIONS[notation].write(written, task)
    if "\n" in answer:
        answer = f"\n{answer}\n"
    think = "" if thinking is None else f"<think>{thinking}</think>\n"
    return f"{think}<answer>{answer}</answer>"


def _filled(path: str, unit: str, order: str, names: Vocabulary | None) -> str:
    """The instruction in a file; its form is that of `string.Template`."""
    values = {"boxes": unit, "order": order}
    if names is not None:
        values["objects"] = ", ".join(names.objects)
        values["predicates"] = ", ".join(names.predicates)
    text = Template(_read(path))
    if not text.is_valid():
        raise refusal(path, "a $ that starts no placeholder", "write $$ for a dollar")
    if unknown := [name for name in text.get_identifiers() if name not in values]:
        known = ", ".join(f"${name}" for name in values)
        also = " ($objects and $predicates need data.vocabulary)" if names is None else ""
        raise refusal(path, f"placeholder ${unknown[0]}", f"there are {known}{also}")
    return text.substitute(values)


@cache
def _read(path: str) -> str:
    try:
        text = Path(path).read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise refusal(path, f"not UTF-8 text ({error})", "save it as UTF-8") from error
    except (OSError, ValueError) as error:
        wanted = f"data.template is {', '.join(SHIPPED)} or the path of a text file"
        raise refusal(path, f"no such template ({error})", wanted) from error
    if not text:
        raise refusal(path, "an empty template", "an instruction is wanted")
    return text


def _unit(box_space: BoxSpace) -> str:
    width, height = box_space.scale
    return _UNITS.get(box_space.name, _PIXELS).format(width=width, height=height)
