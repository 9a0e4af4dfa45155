"""Whole evaluations on annotated data, and what people published."""

import csv
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import evaluation
from evaluation.evaluate_files import Request, run_evaluation
from evaluation.published import published_tables
from evaluation.result import EvaluationResult
from scene_data.dataset import open_dataset
from scene_data.toy.scenes import make_toy
from tests.graph_lines import line, write
from tests.shared_data import SHARED_DATA

DOCS = Path(__file__).parents[3] / "docs"


def as_predictions(dataset: str, file: Path) -> Path:
    """The annotations themselves."""
    rows: list[dict[str, Any]] = [
        {
            "image_id": sample.image_id,
            "width": sample.width,
            "height": sample.height,
            "objects": [{"id": o.id, "bbox": o.bbox} for o in sample.graph.objects],
            "relationships": [
                {"subject": r.subject, "predicate": r.predicate, "object": r.object}
                for r in sample.graph.relationships
            ],
        }
        for sample in open_dataset(dataset)
    ]
    return write(file, rows)


def check_perfect(result: EvaluationResult) -> None:
    strict = result.protocols["strict"]
    assert [strict[f"triplet_{m}"] for m in ("recall", "precision", "f1")] == [1, 1, 1]
    assert strict["ng_recall@100"] == result.protocols["sgb"]["recall@100"] == 1
    assert set(result.protocols["r1-sgg"].values()) == {1, strict["num_images"]}
    assert {result.objects[m] for m in ("ap", "ap50", "recall", "precision", "f1")} == {1}
    assert result.answers["failure_rate"] == 0
    assert all(item.verdict == "hit" for image in result.images for item in image.reference.objects)


def test_real_annotations_against_themselves(tmp_path: Path) -> None:
    data = SHARED_DATA / "vg/vg_sgg_49.json"
    if not data.is_file():
        pytest.skip("the Visual Genome sample is not here")
    request = Request(
        predictions=as_predictions(str(data), tmp_path / "predictions.jsonl"),
        reference=str(data),
        split="sample",
        num_images=2,
    )
    result = run_evaluation(request, tmp_path / "out")
    check_perfect(result)
    assert result.num_images == 4
    assert [image.image_id for image in result.images] == ["1", "2", "4", "5"]
    # 13 of the 108 relations repeat another: those are not predicted, and each counts.
    assert result.answers["relations_per_image"] == 95 / 4
    assert result.answers["reference_relations_per_image"] == 108 / 4


def test_toy_scenes_with_their_pictures(tmp_path: Path) -> None:
    make_toy(tmp_path / "toy", num_train=40, num_heldout=12, seed=0)
    heldout = str(next((tmp_path / "toy").glob("*heldout*")))
    request = Request(
        predictions=as_predictions(heldout, tmp_path / "predictions.jsonl"),
        reference=heldout,
        split="heldout",
        train=str(next((tmp_path / "toy").glob("*train*"))),
    )
    result = run_evaluation(request, tmp_path / "out")
    check_perfect(result)
    assert sum(row.num_training or 0 for row in result.predicates) > 40
    assert "data:image/jpeg;base64," in (tmp_path / "out/report.html").read_text()


def test_jsonl_of_a_dataset_is_a_reference_too(tmp_path: Path) -> None:
    Image.new("RGB", (100, 100)).save(tmp_path / "1.png")
    row = line(1) | {"image": "1.png"}
    for key in ("objects", "relationships"):
        row[key] = json.dumps(row[key])
    del row["width"], row["height"]
    reference = write(tmp_path / "reference.jsonl", [row])
    predictions = write(tmp_path / "predictions.jsonl", [line(1)])
    request = Request(
        predictions=predictions, reference=str(reference), split="val", train=str(reference)
    )
    result = run_evaluation(request, tmp_path / "out")
    check_perfect(result)
    assert result.protocols["strict"]["zero_shot_recall@20"] is None  # nothing is new
    assert result.problem_counts == {}


def test_constrained_answers_keep_the_failures_of_free_ones(tmp_path: Path) -> None:
    rows = [line(i) for i in range(4)]
    rows[0] |= {"unconstrained_status": "invalid_json"}
    rows[1] |= {"status": "no_answer", "objects": [], "relationships": []}
    reference = write(tmp_path / "reference.jsonl", [line(i) for i in range(4)])
    predictions = write(tmp_path / "predictions.jsonl", rows)
    request = Request(predictions=predictions, reference=str(reference), split="val")
    answers = run_evaluation(request, tmp_path / "out").answers
    assert (answers["failure_rate"], answers["unconstrained_failure_rate"]) == (0.25, 0.5)
    # Without a single constrained answer it takes the settings to know that all were free.
    write(tmp_path / "predictions.jsonl", [line(0), rows[1]])
    assert run_evaluation(request, tmp_path / "out").answers["unconstrained_failure_rate"] is None
    (tmp_path / "predictions.settings.json").write_text(json.dumps({"constrain": "never"}))
    answers = run_evaluation(request, tmp_path / "out").answers
    assert answers["unconstrained_failure_rate"] == answers["failure_rate"] == 0.75


def test_names_outside_the_vocabulary_in_references_are_counted(tmp_path: Path) -> None:
    objects = [{"id": "unicorn.1", "bbox": [0, 0, 9, 9]}, *line(1)["objects"]]
    reference = write(tmp_path / "reference.jsonl", [line(1), line(2, objects=objects)])
    predictions = write(tmp_path / "predictions.jsonl", [line(1), line(2)])
    request = Request(predictions=predictions, reference=str(reference), split="val")
    result = run_evaluation(replace(request, vocabulary="vg150"), tmp_path / "out")
    assert result.problem_counts == {"unknown_name": 1}
    (problem,) = result.problems
    assert (problem.line, problem.image_id) == (2, "2")
    assert "unicorn" in problem.detail


def test_published_tables_hold_all_rows_of_the_papers() -> None:
    tables = [table for dataset in ("vg150", "psg") for table in published_tables(dataset)]
    assert sum(len(table.rows) for table in tables) == 48
    assert published_tables(None) == published_tables("coco") == []
    first, opened, rewards, other = published_tables("vg150")
    assert (first.source, first.split, first.prompt) == (
        "arXiv 2504.13617 table 1",
        "val",
        "closed",
    )
    numbers = {row.label: (row.recall, row.mean_recall) for row in (*first.rows, *rewards.rows)}
    assert numbers["R1-SGG, 7B (r1-hard)"] == pytest.approx((0.2375, 0.1143))
    assert numbers["R1-SGG, soft recall, 7B (r1-soft)"] == pytest.approx((0.2192, 0.0561))
    assert [row.recall for row in opened.rows] == pytest.approx([0.0061, 0.0894, 0.1633, 0.2273])
    assert (other.protocol, other.split) == ("sgg-r3", "test")


def test_published_rows_are_the_shared_file() -> None:
    """Every number of it, and no other."""
    file = SHARED_DATA / "published_rows.csv"
    if not file.is_file():
        pytest.skip("the published rows are not here")
    lines = list(csv.DictReader(file.open()))
    columns = ("failure_percent", "ap50", "recall", "mean_recall")
    wanted = [
        [float(line[name]) / 100 if line[name] else None for name in columns] for line in lines
    ]
    rows = [r for name in ("vg150", "psg") for table in published_tables(name) for r in table.rows]
    found = [[row.failure_rate, row.ap50, row.recall, row.mean_recall] for row in rows]
    assert sorted(map(str, found)) == sorted(map(str, wanted))


@pytest.mark.parametrize(
    ("split", "template", "sources"),
    [
        ("VG150 val", "closed", ["1", "4"]),
        ("VG150 val", "open", ["3"]),
        ("val", None, ["1", "3", "4"]),
        ("VG150 test", "closed", []),
    ],
)
def test_a_result_stands_beside_rows_of_its_own_kind(
    tmp_path: Path, split: str, template: str | None, sources: list[str]
) -> None:
    file = write(tmp_path / "lines.jsonl", [line(1), line(2)])
    request = Request(predictions=file, reference=str(file), split=split, vocabulary="vg150")
    result = run_evaluation(request, tmp_path / "out")
    result = replace(result, settings={"template": template} if template else {})
    assert [table.number for table in published_tables("vg150") if table.fits(result)] == sources


def test_the_page_explains_every_key_and_every_problem(tmp_path: Path) -> None:
    page = (DOCS / "evaluation.md").read_text()
    reference = write(tmp_path / "reference.jsonl", [line(1), line(2)])
    predictions = write(tmp_path / "predictions.jsonl", [line(1)])
    request = Request(
        predictions=predictions,
        reference=str(reference),
        split="val",
        train=str(reference),
        vocabulary="vg150",
    )
    run_evaluation(request, tmp_path / "out")
    found = json.loads((tmp_path / "out/metrics.json").read_text())
    metrics = {m.partition("@")[0] for values in found["protocols"].values() for m in values}
    keys = {*found, *found["objects"], *found["answers"], *found["inputs"], *metrics}
    keys |= {*found["predicates"][0], *found["problems"][0], *found["groups"]}
    keys |= {*found["mapping"], *found["mapping"]["objects"]}
    keys |= json.loads((tmp_path / "out/images.jsonl").read_text().splitlines()[0]).keys()
    assert not {key for key in keys if f"`{key}`" not in page and f"`{key}@K`" not in page}
    parts = Path(evaluation.__file__).parent
    sources = [file.read_text() for file in parts.rglob("*.py")]
    kinds = {kind for text in sources for kind in re.findall(r'\.add\(\s*"(\w+)"', text)}
    assert {"broken_line", "unknown_image", "no_prediction", "unknown_name"} <= kinds
    assert not {kind for kind in kinds if f"| `{kind}` |" not in page}
