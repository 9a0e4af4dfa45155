"""Evaluations to draw: references from data, predictions spoilt by seed."""

import random
from collections.abc import Sequence
from pathlib import Path

from evaluation.result import (
    DrawnGraph,
    DrawnObject,
    DrawnRelation,
    EvaluationResult,
    ImageResult,
    PredicateRow,
    Problem,
    Verdict,
)
from scene_data.dataset import Sample

FAILURES = ("invalid_json", "no_answer", "schema_violation")


def spoilt(
    samples: Sequence[Sample],
    seed: int = 0,
    rate: float = 0.3,
    name: str = "policy after 300 steps",
) -> EvaluationResult:
    rng = random.Random(seed)
    images = [_image(sample, rng, rate) for sample in samples]
    predicates = sorted({r.predicate for i in images for r in i.reference.relations})
    rows = []
    n = len(predicates)
    for k, p in enumerate(predicates):
        ref = [r for i in images for r in i.reference.relations if r.predicate == p]
        hit = sum(r.verdict == "hit" for r in ref)
        rows.append((len(ref), hit / len(ref), p))
    rows.sort(reverse=True)
    table = [
        PredicateRow(
            predicate=p,
            group=("head", "body", "tail")[min(2, 3 * k // n)],
            num_training=100 * c,
            num_reference=c,
            num_predicted=rng.randrange(2 * c),
            recall={"strict": r, "sgb": min(1, r * rng.uniform(0.8, 1.3))},
        )
        for k, (c, r, p) in enumerate(rows)
    ]
    value = sum(i.recall or 0 for i in images) / len(images)
    keys = [
        f"{ng}{m}@{k}"
        for ng in ("", "ng_")
        for m in ("recall", "mean_recall", "zero_shot_recall")
        for k in (20, 50, 100)
    ] + ["triplet_precision", "triplet_recall", "triplet_f1"]
    values = {k: value * rng.uniform(0.5, 1.0) for k in keys} | {"num_images": float(len(images))}
    values["zero_shot_recall@20"] = None
    r1 = {"ng_recall": value * 1.2, "ng_mean_recall": value * 0.7, "num_images": float(len(images))}
    protocols = {
        "strict": values,
        "sgb": {k: v for k, v in values.items() if "triplet" not in k},
        "r1-sgg": r1,
    }
    return EvaluationResult(
        inputs={"vocabulary": "vg150"},
        split="Visual Genome sample",
        name=name,
        num_images=len(images),
        protocols=protocols,
        intervals={
            p: {k: (v * 0.9, v * 1.1) for k, v in m.items() if v is not None and k != "num_images"}
            for p, m in protocols.items()
        },
        objects={
            k: rng.random() for k in ("ap", "ap50", "ap75", "precision", "recall", "f1", "mean_iou")
        },
        object_intervals={"f1": (0.3, 0.5)},
        answers={
            "failure_rate": 0.0832,
            "unconstrained_failure_rate": None,
            "relations_per_image": 8.2,
            "reference_relations_per_image": 11.1,
            "objects_per_image": 9.0,
            "reference_objects_per_image": 14.1,
            "tokens_per_image": 512.3,
        },
        failures={s: c for s in FAILURES if (c := sum(i.status == s for i in images))},
        predicates=table,
        groups={
            g: {
                p: sum(r.recall[p] for r in table if r.group == g)
                / max(1, sum(r.group == g for r in table))
                for p in ("strict", "sgb")
            }
            for g in ("head", "body", "tail")
        },
        mapping={
            "objects": {"exact": 0.81, "alias": 0.12, "unmapped": 0.07},
            "predicates": {"exact": 0.7, "alias": 0.2, "unmapped": 0.1},
        },
        settings={
            "model": "Qwen/Qwen2.5-VL-7B-Instruct",
            "sampling": {"temperature": 0.0, "max_tokens": 2048},
            "template": "r1-sgg",
            "constraint": None,
            "vocabulary": "vg150",
        },
        problem_counts={"unknown_image": 3, "box_outside": 12},
        problems=[
            Problem(
                kind="unknown_image",
                file="predictions.jsonl",
                line=7,
                image_id="99",
                detail="not in the reference",
            ),
            Problem(
                kind="box_outside",
                file="predictions.jsonl",
                line=9,
                image_id="4",
                detail="man.1 ends at x = 812, the image is 800 wide",
            ),
        ],
        images=images,
    )


def _image(sample: Sample, rng: random.Random, rate: float) -> ImageResult:
    status = rng.choice(FAILURES) if rng.random() < rate / 4 else "ok"
    index = {o.id: k for k, o in enumerate(sample.graph.objects)}
    kept = [rng.random() > rate and status == "ok" for _ in index]
    ref_rel = [(index[r.subject], r.predicate, index[r.object]) for r in sample.graph.relationships]
    hits = [kept[s] and kept[o] and rng.random() > rate for s, _, o in ref_rel]
    names = [o.category for o in sample.graph.objects]
    objects, moved = [], {}
    for k, o in enumerate(sample.graph.objects):
        if status == "ok" and rng.random() < 0.85:
            moved[k] = len(objects)
            wob = 6 if kept[k] else 60
            box = tuple(c + rng.uniform(-wob, wob) for c in o.bbox)
            objects.append(
                DrawnObject(name=names[k], bbox=box, verdict="hit" if kept[k] else "hallucination")
            )
    relations = []
    found = []
    for (s, p, o), h in zip(ref_rel, hits):
        ok = h and s in moved and o in moved
        found.append(ok)
        if ok:
            relations.append(
                DrawnRelation(subject=moved[s], predicate=p, object=moved[o], verdict="hit")
            )
        elif s in moved and o in moved and rng.random() < 0.5:
            relations.append(
                DrawnRelation(
                    subject=moved[s],
                    predicate=rng.choice(ref_rel)[1],
                    object=moved[o],
                    verdict="hallucination",
                )
            )

    def v(h: bool) -> Verdict:
        return "hit" if h else "miss"

    reference = DrawnGraph(
        objects=[
            DrawnObject(name=n, bbox=o.bbox, verdict=v(k in moved and kept[k]))
            for k, (n, o) in enumerate(zip(names, sample.graph.objects))
        ],
        relations=[
            DrawnRelation(subject=s, predicate=p, object=o, verdict=v(f))
            for (s, p, o), f in zip(ref_rel, found)
        ],
    )
    n, m = sum(found), len(ref_rel)
    return ImageResult(
        image_id=sample.image_id,
        width=sample.width,
        height=sample.height,
        status=status,
        text='<answer>{"objects": [{"id": "man.1", "bbox": [1'
        if status != "ok"
        else "<answer>{}</answer>",
        num_tokens=rng.randrange(100, 900) if status == "ok" else 1024,
        recall=n / m if m else None,
        f1=2 * n / (m + len(relations)) if m else None,
        reference=reference,
        predicted=DrawnGraph(objects=objects, relations=relations),
    )
