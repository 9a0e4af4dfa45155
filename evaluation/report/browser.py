"""The images of the report's browser as one block of JSON, which `browser.js` draws."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from evaluation.result import DrawnGraph, ImageResult
from scene_graph.cleaning import Task

PictureOf = Callable[[str, tuple[int, int]], str | None]
"""Image id, width and height in pixels, to the address of the picture; None where there is none."""
MAX_TEXT = 20_000
"""Characters of an answer that the page holds."""


def browser_data(
    chosen: Sequence[ImageResult],
    sides: Sequence[tuple[str, Mapping[str, ImageResult]]],
    picture: PictureOf,
    task: Task = "sgg",
    order: str = "given",
) -> dict[str, Any]:
    """What the browser shows.

    Args:
        chosen: Images to show, with their references.
        sides: Name of the predictions and their results by image id: one, or two to compare.
        picture: A data URI, for a page without a server.
        task: Says which recall each image has.
        order: The images' at first: a value of the page's choice, such as `loss`.
    """
    return {
        "judged": True,
        "recall": "strict recall" if task == "cls" else "strict R@100",
        "order": order,
        "sides": [name for name, _ in sides],
        "images": [
            _image(image, [side[image.image_id] for _, side in sides], picture) for image in chosen
        ],
    }


def json_block(data: Mapping[str, Any]) -> Markup:
    """JSON that can stand inside a script element, whatever texts it holds.

    `<` could end the element or start a comment; everything beyond ASCII is escaped by `dumps`.
    """
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", r"\u003c"))  # noqa: S704 - see above


def _image(
    image: ImageResult, results: Sequence[ImageResult], picture: PictureOf
) -> dict[str, Any]:
    # A line may say 0, which nothing can be drawn on.
    size = max(image.width, 1), max(image.height, 1)
    return {
        "id": image.image_id,
        "width": size[0],
        "height": size[1],
        "picture": picture(image.image_id, size),
        "reference": _graph(image.reference, image),
        "sides": [_side(result) for result in results],
    }


def _side(result: ImageResult) -> dict[str, Any]:
    """A prediction, and which items of the reference it found."""
    return {
        "status": result.status,
        "text": cut(result.text),
        "tokens": result.num_tokens,
        "recall": result.recall,
        "f1": result.f1,
        "predicted": _graph(result.predicted, result),
        "found": {
            "objects": [item.verdict == "hit" for item in result.reference.objects],
            "relations": [item.verdict == "hit" for item in result.reference.relations],
        },
    }


def _graph(graph: DrawnGraph, image: ImageResult) -> dict[str, Any]:
    return {
        "objects": [
            {
                "name": item.name,
                "box": drawable(item.bbox, (image.width, image.height)),
                "hit": item.verdict == "hit",
            }
            for item in graph.objects
        ],
        "relations": [
            {
                "subject": item.subject,
                "predicate": item.predicate,
                "object": item.object,
                "hit": item.verdict == "hit",
            }
            for item in graph.relations
        ],
    }


def drawable(
    bbox: tuple[float, float, float, float] | None, size: tuple[int, int]
) -> tuple[float, ...] | None:
    """The box to a tenth of a pixel, cut to one image's size around the image; None without one."""
    if bbox is None or not all(map(math.isfinite, bbox)):
        return None
    return tuple(round(min(max(c, -s), 2 * s), 1) for c, s in zip(bbox, size * 2, strict=True))


def cut(text: str | None) -> str | None:
    """At most `MAX_TEXT` characters of an answer, and how many more there are."""
    if text is None or len(text) <= MAX_TEXT:
        return text
    return f"{text[:MAX_TEXT]} … ({len(text) - MAX_TEXT:,} more characters)"
