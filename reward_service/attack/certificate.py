"""What an attack found, as JSON that anyone can score again, and as pictures."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from reward_service.attack.measure import Court, Outcome, Scene, as_written
from reward_service.attack.search import MIN_F1_LOSS, Findings, Hole
from reward_service.scoring import RewardScorer
from scene_graph.cleaning import clean_columns
from scene_graph.drawing import draw_png
from scene_graph.graph import Relationship, SceneGraph, SceneObject
from services.images import decode_image

Values = dict[str, Any]


def write_findings(folder: Path, findings: Findings, scorer: RewardScorer, *, seed: int) -> None:
    """Write `attack.json`, and for each hole `hole-N.png`: honest answer, and after the edits.

    Args:
        folder: Made where missing; files of these names are replaced.
        findings: Of the attack.
        scorer: What was attacked.
        seed: Of the attack.
    """
    folder.mkdir(parents=True, exist_ok=True)
    value = findings_value(findings, scorer, seed=seed)
    text = json.dumps(value, indent=1, ensure_ascii=False)
    (folder / "attack.json").write_text(text + "\n", encoding="utf-8")
    for number, hole in enumerate(findings.holes, 1):
        index = _example(findings, hole)
        picture = _side_by_side(
            findings.scenes[index], findings.answers[index], hole.answers[index]
        )
        picture.save(folder / f"hole-{number}.png")


def findings_value(findings: Findings, scorer: RewardScorer, *, seed: int) -> Values:
    """All of it, as JSON holds it. Rewards are shares of the highest total."""
    return {
        "rubric": scorer.rubric.model_dump(mode="json", exclude_defaults=True),
        "rubric_version": scorer.rubric_version,
        "hackability": findings.hackability,
        "num_policies": findings.num_policies,
        "num_scenes": len(findings.scenes),
        "honest": _means(findings.honest) | {"gain_of_half_the_errors": findings.honest_gain},
        "holes": [_hole_value(findings, hole) for hole in findings.holes],
        "seed": seed,
        "rounds": findings.num_rounds,
    }


def rescored(certificate: Values, scorer: RewardScorer) -> tuple[Outcome, Outcome]:
    """What a hole's example earns before and after, under any rubric.

    Args:
        certificate: An entry of `holes` in `attack.json`.
        scorer: A rubric for the task `sgg`.

    Returns:
        Two outcomes of one scene each.
    """
    example = certificate["example"]
    scene = Scene(
        image_id=example["image_id"],
        width=example["width"],
        height=example["height"],
        graph=_graph(example["reference"]),
    )
    court = Court(scorer, [scene])
    before, after = (court.judge([_graph(example[key]["graph"])]) for key in ("before", "after"))
    return before, after


def _hole_value(findings: Findings, hole: Hole) -> Values:
    index = _example(findings, hole)
    scene = findings.scenes[index]
    return {
        "policy": list(hole.policy),
        "gain": hole.effect.gain,
        "gain_error": hole.effect.gain_error,
        "f1_loss": hole.effect.f1_loss,
        "after": _means(hole.outcome),
        "example": {
            "image_id": scene.image_id,
            "width": scene.width,
            "height": scene.height,
            "reference": _graph_value(scene.graph),
            "before": _answer_value(findings.answers[index], findings.honest, index),
            "after": _answer_value(hole.answers[index], hole.outcome, index),
        },
    }


def _example(findings: Findings, hole: Hole) -> int:
    """The scene that gains most reward, of those that lose F1."""
    gains = hole.outcome.totals - findings.honest.totals
    losing = findings.honest.f1 - hole.outcome.f1 >= MIN_F1_LOSS
    return int(np.where(losing, gains, -np.inf).argmax())


def _means(outcome: Outcome) -> Values:
    terms = outcome.rewards[0].breakdown
    return {
        "reward": float(outcome.totals.mean()),
        "f1": float(outcome.f1.mean()),
        "breakdown": {
            name: float(np.mean([reward.breakdown[name] for reward in outcome.rewards]))
            for name in terms
        },
    }


def _answer_value(answer: SceneGraph, outcome: Outcome, index: int) -> Values:
    return {
        "reward": float(outcome.totals[index]),
        "f1": float(outcome.f1[index]),
        "breakdown": outcome.rewards[index].breakdown,
        "graph": _graph_value(as_written(answer)),
    }


def _graph_value(graph: SceneGraph) -> Values:
    """Boxes in fractions."""
    return {
        "objects": [{"id": o.id, "bbox": list(o.bbox)} for o in graph.objects],
        "relationships": [[e.subject, e.predicate, e.object] for e in graph.relationships],
    }


def _graph(value: Values) -> SceneGraph:
    objects = (SceneObject(id=o["id"], bbox=tuple(o["bbox"])) for o in value["objects"])
    edges = (Relationship(subject=s, predicate=p, object=o) for s, p, o in value["relationships"])
    return clean_columns(objects, edges, (1.0, 1.0))[0].to_graph()


def _side_by_side(scene: Scene, before: SceneGraph, after: SceneGraph) -> Image.Image:
    """Two drawings on the scene's picture, or on white where it has none."""
    picture = decode_image(scene.picture) if scene.picture else None
    size = scene.width, scene.height
    drawings = [
        decode_image(draw_png(graph.scaled(*size), *size, picture)) for graph in (before, after)
    ]
    width, height = drawings[0].size
    sheet = Image.new("RGB", (2 * width + _GAP, height), "white")
    for place, drawing in enumerate(drawings):
        sheet.paste(drawing, (place * (width + _GAP), 0))
    return sheet


_GAP = 20
"""Pixels between two drawings"""
