"""`predictions.html`: the graphs of pictures, without a reference to hold them against."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.reading.lines import GraphLine
from evaluation.report.browser import cut, drawable, json_block
from evaluation.report.page import choose_images
from evaluation.report.pictures import data_uri
from evaluation.report.tables import flat_settings
from evaluation.report.template import BROWSER, render

NAME = "predictions.html"
MAX_PICTURES = 200
_SETTINGS = (
    "model",
    "temperature",
    "best_of",
    "consensus",
    "scores",
    "template",
    "vocabulary",
    "thinking",
    "constrain",
)


def write_predictions(
    lines: Sequence[GraphLine],
    folder: Path,
    image_bytes: Callable[[str], bytes | None],
    settings: Mapping[str, object],
) -> Path:
    """Write `folder/predictions.html`.

    Args:
        lines: All of the folder.
        folder: Exists.
        image_bytes: Image id to the encoded picture; None where there is none.
        settings: Of `predictions.settings.json`.
    """
    failed = {str(line.image_id) for line in lines if line.status != "ok"}
    chosen, how_chosen = choose_images(lines, MAX_PICTURES, failed)
    images = [_image(line, image_bytes) for line in chosen]
    data = {"recall": "", "judged": False, "sides": ["Prediction"], "images": images}
    flat = flat_settings(settings)
    html = render(
        "predictions.html.jinja",
        BROWSER,
        title=f"Scene graphs by {settings['model']}",
        num_pictures=len(lines),
        num_failed=len(failed),
        settings={name: flat[name] for name in _SETTINGS if name in flat},
        judged=False,
        how_chosen=how_chosen,
        browser=json_block(data),
    )
    file = folder / NAME
    file.write_text(html, encoding="utf-8", errors="replace")
    return file


def _image(line: GraphLine, image_bytes: Callable[[str], bytes | None]) -> dict[str, Any]:
    picture = image_bytes(str(line.image_id))
    size = max(line.size[0], 1), max(line.size[1], 1)
    places = {item.id: number for number, item in enumerate(line.objects)}
    objects = [
        {"name": item.id.partition(".")[0], "box": drawable(item.bbox, size)}
        for item in line.objects
    ]
    relations = [
        {"subject": places[r.subject], "predicate": r.predicate, "object": places[r.object]}
        for r in line.relationships
    ]
    side = {
        "status": line.status,
        "text": cut(line.text or line.problem),
        "tokens": line.num_tokens,
        "confidence": line.mean_logprob,
        "predicted": {"objects": objects, "relations": relations},
    }
    return {
        "id": str(line.image_id),
        "width": size[0],
        "height": size[1],
        "picture": data_uri(picture if line.shows(picture) else None, size),
        "reference": None,
        "sides": [side],
    }
