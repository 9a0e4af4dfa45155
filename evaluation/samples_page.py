"""`samples.html`: held-out images with the reference graph and the policy's, before and after."""

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from evaluation.heldout import clean_reference, heldout_samples
from scene_data.dataset import Sample
from scene_data.wire import box_space
from scene_graph.graph import GraphColumns, Relationship, SceneGraph
from scene_graph.matching import compare
from scene_graph.parsing import parse_completion
from services.settings import Settings

NUM_IMAGES = 24
PANEL_WIDTH = 320
"""CSS pixels of one picture."""

HIT, MISS, WRONG = "hit", "miss", "wrong"


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One graph drawn over its image."""

    title: str
    boxes: list[dict[str, Any]]
    arrows: list[dict[str, Any]]
    triplets: list[dict[str, str]]
    note: str


def write_samples_page(settings: Settings) -> Path:
    """Write one self-contained HTML file from the held-out answers of the run."""
    samples = heldout_samples(settings)[:NUM_IMAGES]
    rows = []
    answers = {label: _answers(settings.run.folder, label) for label in ("before", "after")}
    for i, sample in enumerate(samples):
        reference = clean_reference(sample)
        panels = [_panel("reference", reference, reference, sample, "")]
        for label, texts in answers.items():
            if i < len(texts):
                parsed = parse_completion(texts[i], box_space(settings.model, sample))
                note = "" if parsed.status == "ok" else f"{parsed.status}: {texts[i][:300]}"
                panels.append(_panel(label, parsed.graph, reference, sample, note))
        rows.append({"sample": sample, "image": _data_uri(sample), "panels": panels})
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True
    )
    html = environment.get_template("samples.html.jinja").render(
        run=settings.run.name, rows=rows, width=PANEL_WIDTH
    )
    file = settings.run.folder / "samples.html"
    file.write_text(html)
    return file


def _answers(folder: Path, label: str) -> list[str]:
    file = folder / f"heldout-{label}.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return [json.loads(line)["text"] for line in lines]


def _data_uri(sample: Sample) -> str:
    kind = "png" if sample.image_bytes[:4] == b"\x89PNG" else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(sample.image_bytes).decode()}"


def _panel(
    title: str, graph: SceneGraph, reference: SceneGraph, sample: Sample, note: str
) -> Panel:
    """Colours say what the strict protocol counts; the reference is drawn without judgement."""
    height = PANEL_WIDTH * sample.height / sample.width
    found, edge_found, edge_reached = _hits(graph, reference)
    boxes = {
        item.id: {
            "label": item.id,
            "x": item.bbox[0] * PANEL_WIDTH,
            "y": item.bbox[1] * height,
            "w": (item.bbox[2] - item.bbox[0]) * PANEL_WIDTH,
            "h": (item.bbox[3] - item.bbox[1]) * height,
            "kind": HIT if i in found else WRONG,
        }
        for i, item in enumerate(graph.objects)
    }
    triplets = [
        {"text": _triplet(r), "kind": HIT if i in edge_found else WRONG}
        for i, r in enumerate(graph.relationships)
    ]
    missed = [
        {"text": _triplet(r), "kind": MISS}
        for i, r in enumerate(reference.relationships)
        if i not in edge_reached
    ]
    arrows = [
        _arrow(boxes[r.subject], boxes[r.object], r.predicate, t["kind"])
        for r, t in zip(graph.relationships, triplets, strict=True)
    ]
    return Panel(
        title=title,
        boxes=list(boxes.values()),
        arrows=arrows,
        triplets=triplets + missed,
        note=note,
    )


def _hits(graph: SceneGraph, reference: SceneGraph) -> tuple[set[int], set[int], set[int]]:
    """Places of predicted objects, predicted triplets and reference triplets that hit another."""
    sides = [GraphColumns.from_graph(graph)], [GraphColumns.from_graph(reference)]
    c = compare(*sides, np.zeros(1, dtype=np.int64))
    assert c.pairs is not None
    objects = c.pairs.predicted[c.pairs.same_name & c.pairs.overlap]
    hit = c.triplets.same_names & c.triplets.overlap
    return (
        set(c.predicted.written[objects].tolist()),
        set(c.triplets.predicted[hit].tolist()),
        set(c.triplets.instance[hit].tolist()),
    )


def _arrow(a: dict[str, Any], b: dict[str, Any], label: str, kind: str) -> dict[str, Any]:
    x1, y1 = a["x"] + a["w"] / 2, a["y"] + a["h"] / 2
    x2, y2 = b["x"] + b["w"] / 2, b["y"] + b["h"] / 2
    return {"x1": x1, "y1": y1, "x2": x2, "y2": y2, "label": label, "kind": kind}


def _triplet(relationship: Relationship) -> str:
    return f"{relationship.subject} — {relationship.predicate} — {relationship.object}"
