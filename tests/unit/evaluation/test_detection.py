"""Average precision under ties against all orders of them; COCO's against pycocotools."""

import contextlib
import io
import itertools
import math
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from evaluation.scoring.detection import detection_ap, expected_ap, matched
from scene_graph.metrics.table import ImageGraph, tabulate

NAMES = ("cat", "dog", "man", "mat", "sky")


def scene(rng: random.Random, num_objects: int, names: Sequence[str]) -> ImageGraph:
    corners = [(rng.randint(0, 40), rng.randint(0, 40)) for _ in range(num_objects)]
    sizes = [(rng.randint(0, 15), rng.randint(5, 15)) for _ in range(num_objects)]
    return ImageGraph(
        names=rng.choices(names, k=num_objects),
        boxes=[
            float(c)
            for (x, y), (width, height) in zip(corners, sizes, strict=True)
            for c in (x, y, x + width, y + height)
        ],
    )


def guess(rng: random.Random, reference: ImageGraph, num_more: int, *, scored: bool) -> ImageGraph:
    """Most of the reference's boxes, some twice, moved a little; and wrong ones between."""
    kept = rng.choices(range(len(reference.names)), k=len(reference.names))
    more = scene(rng, num_more, NAMES[1:])
    items = [(reference.names[i], moved(rng, reference.boxes[4 * i : 4 * i + 4])) for i in kept] + [
        (name, more.boxes[4 * i : 4 * i + 4]) for i, name in enumerate(more.names)
    ]
    rng.shuffle(items)
    return ImageGraph(
        names=[name for name, _ in items],
        boxes=[c for _, box in items for c in box],
        scores=rng.choices((0.1, 0.5, 0.9, 1.0), k=len(items)) if scored else [],
    )


def moved(rng: random.Random, box: Sequence[float]) -> list[float]:
    x1, y1, x2, y2 = (c + rng.randint(-1, 1) for c in box)
    return [x1, y1, max(x1, x2), max(y1, y2)]


def coco(graphs: Sequence[ImageGraph], names: Sequence[str]) -> COCO:
    annotations: list[dict[str, Any]] = []
    for image, graph in enumerate(graphs):
        for i, name in enumerate(graph.names):
            x1, y1, x2, y2 = graph.boxes[4 * i : 4 * i + 4]
            if name in names:
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image,
                        "category_id": names.index(name),
                        "bbox": [x1, y1, x2 - x1, y2 - y1],
                        "area": (x2 - x1) * (y2 - y1),
                        "score": graph.scores[i] if graph.scores else 1.0,
                        "iscrowd": 0,
                    }
                )
    made = COCO()
    made.dataset = {
        "images": [{"id": image} for image in range(len(graphs))],
        "categories": [{"id": i, "name": name} for i, name in enumerate(names)],
        "annotations": annotations,
    }
    made.createIndex()
    return made


def judged(
    predictions: Sequence[ImageGraph], references: Sequence[ImageGraph]
) -> tuple[COCOeval, list[str]]:
    names = sorted({name for graph in references for name in graph.names})
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(coco(references, names), coco(predictions, names), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation, names


def scenes(seed: int, *, scored: bool) -> tuple[list[ImageGraph], list[ImageGraph]]:
    """Predictions and references; now and then more boxes of a name than count in an image."""
    rng = random.Random(seed)
    references = [scene(rng, rng.randint(0, 12), NAMES[:4]) for _ in range(rng.randint(1, 12))]
    num_more = 500 if seed % 10 == 0 else rng.randint(0, 6)
    return [guess(rng, graph, num_more, scored=scored) for graph in references], references


@pytest.mark.parametrize("scored", [False, True])
def test_cocos_agrees_with_pycocotools(scored: bool, capfd: pytest.CaptureFixture[str]) -> None:
    found = []
    for seed in range(40):
        predictions, references = scenes(seed, scored=scored)
        if any(graph.names for graph in references):
            result = detection_ap(*tabulate(predictions, references))
            measured = [result["coco_ap"], result["coco_ap50"], result["coco_ap75"]]
            expected = judged(predictions, references)[0].stats[:3].tolist()
            assert measured == pytest.approx(expected, abs=1e-9)
            found.append(result["coco_ap"])
    assert len(set(found)) > 30
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("scored", [False, True])
def test_hits_are_those_of_pycocotools(scored: bool) -> None:
    """As many of each name at each threshold: it keeps the best of an image, sorted by score."""
    for seed in range(1, 10):
        predictions, references = scenes(seed, scored=scored)
        tables = tabulate(predictions, references)
        evaluation, names = judged(predictions, references)
        hits = matched(*tables)
        images = [i for i in evaluation.evalImgs if i and i["aRng"] == [0, 1e10]]
        for category, name in enumerate(names):
            of_name = hits[:, tables[0].object_names == tables[0].names.index(name)]
            theirs = [i["dtMatches"] > 0 for i in images if i["category_id"] == category]
            num_theirs = sum((m.sum(axis=1) for m in theirs), np.zeros(10, dtype=int))
            assert of_name.sum(axis=1).tolist() == num_theirs.tolist()


def average_precision(hits: Sequence[bool], num_reference: int) -> float:
    """The definition, for one order."""
    found = [sum(hits[: i + 1]) / (i + 1) for i, hit in enumerate(hits) if hit]
    return sum(found) / num_reference


@given(st.lists(st.tuples(st.sampled_from([0.1, 0.5, 1.0]), st.booleans()), max_size=6))
def test_the_mean_over_all_orders_of_ties(detections: list[tuple[float, bool]]) -> None:
    by_score = [[hit for score, hit in detections if score == level] for level in (1.0, 0.5, 0.1)]
    orders = itertools.product(*map(itertools.permutations, by_score))
    every = [average_precision([*itertools.chain(*order)], 7) for order in orders]
    scores = np.array([score for score, _ in detections])
    hits = np.array([[hit for _, hit in detections]], dtype=np.bool_)
    assert expected_ap(scores, hits, 7) == pytest.approx([sum(every) / len(every)])


def test_the_order_of_images_does_not_matter() -> None:
    predictions, references = scenes(3, scored=False)
    pairs = list(zip(predictions, references, strict=True))
    found = []
    for seed in range(5):
        random.Random(seed).shuffle(pairs)
        found.append(detection_ap(*tabulate(*map(list, zip(*pairs, strict=True)))))
    for name in ("ap", "ap50", "ap75"):
        assert [f[name] for f in found] == pytest.approx([found[0][name]] * 5, rel=1e-12)
    assert len({round(f["coco_ap"], 4) for f in found}) > 1


def test_by_hand() -> None:
    reference = ImageGraph(names=["cat", "cat"], boxes=[0, 0, 10, 10, 20, 0, 30, 10])
    # A box of IoU 0.6 first, then a wrong one, then the other cat exactly.
    boxes = [0.0, 0, 10, 6, 50, 0, 60, 10, 20, 0, 30, 10]
    result = detection_ap(*tabulate([ImageGraph(names=["cat"] * 3, boxes=boxes)], [reference]))
    # At 0.5, COCO's precision is 1 up to recall 1/2 (51 of 101 points), then 2/3.
    assert result["coco_ap50"] == pytest.approx((51 + 50 * 2 / 3) / 101)
    # At 0.75 only the third hits: 1/3 up to recall 1/2.
    assert result["coco_ap75"] == pytest.approx(51 / 3 / 101)
    assert result["coco_ap"] == pytest.approx(
        (3 * result["coco_ap50"] + 7 * result["coco_ap75"]) / 10
    )
    # In the three orders the wrong box is last, between and first.
    orders = [(1 + 1) / 2, (1 + 2 / 3) / 2, (1 / 2 + 2 / 3) / 2]
    assert result["ap50"] == pytest.approx(sum(orders) / 3)
    # One hit of three, first, second or third, of two references.
    assert result["ap75"] == pytest.approx((1 + 1 / 2 + 1 / 3) / 3 / 2)
    assert result["ap"] == pytest.approx((3 * result["ap50"] + 7 * result["ap75"]) / 10)


def test_perfect_and_missing_predictions() -> None:
    graph = ImageGraph(names=["cat", "mat"], boxes=[0, 0, 5, 5, 1, 1, 9, 9])
    perfect = detection_ap(*tabulate([graph, ImageGraph()], [graph, ImageGraph()]))
    assert perfect["ap"] == pytest.approx(1)
    nothing = detection_ap(*tabulate([ImageGraph()], [graph]))
    assert (nothing["ap"], nothing["ap50"]) == (0, 0)
    no_reference = detection_ap(*tabulate([graph], [ImageGraph()]))
    assert math.isnan(no_reference["ap"])
    assert math.isnan(no_reference["ap50"])


def test_boxes_with_swapped_corners_hit_nothing() -> None:
    swapped = ImageGraph(names=["cat"], boxes=[5, 5, 0, 0])
    reference = ImageGraph(names=["cat"], boxes=[0, 0, 5, 5])
    assert detection_ap(*tabulate([swapped], [reference]))["ap"] == 0
    assert np.isfinite(detection_ap(*tabulate([reference], [swapped]))["ap"])
