import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from evaluation.evaluate_files import Request, run_evaluation
from evaluation.inference.answers import answered_line
from evaluation.of_a_run.report import heldout_result, write_heldout_report
from scene_data.dataset import open_dataset
from scene_data.reading.sources import open_rows
from scene_data.templates import answer_text
from scene_data.toy.scenes import make_toy
from scene_graph.boxes import RELATIVE_1000
from services.schemas.rollouts import Completion, VersionSpan
from services.settings import Settings

BROKEN = "<answer>{oops</answer><script>alert(1)</script>"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    make_toy(tmp_path / "toy", num_train=4, num_heldout=3)
    (tmp_path / "runs" / "r").mkdir(parents=True)
    return Settings.model_validate(
        {
            "run": {"name": "r", "root": str(tmp_path / "runs")},
            "model": {"path": "none", "box_space": "relative_1000"},
            "data": {
                "train": str(tmp_path / "toy/train.parquet"),
                "heldout": str(tmp_path / "toy/heldout.parquet"),
                "template": "toy",
            },
        }
    )


def write_answers(settings: Settings, label: str, text: str | None) -> None:
    """The same text for each image, or the right answer."""
    lines = []
    for sample in open_dataset(settings.data.heldout or ""):
        right = answer_text(sample.graph, RELATIVE_1000, width=112, height=112)
        answer = Completion(
            text=text or right,
            token_ids=[1, 2],
            rollout_logprobs=[0.0, 0.0],
            finish_reason="stop",
            policy_versions=[VersionSpan(policy_version=0, start=0, end=2)],
        )
        lines.append(msgspec.json.encode(answered_line(settings, sample, answer)))
    (settings.run.folder / f"heldout-{label}.jsonl").write_bytes(b"\n".join(lines))


def browser_of(html: str) -> Any:
    return json.loads(html.partition('id="browser-data">')[2].partition("</script>")[0])


def test_before_and_after_stand_beside_each_other(settings: Settings) -> None:
    write_answers(settings, "before", BROKEN)
    write_answers(settings, "after", None)
    html = write_heldout_report(settings).read_text()
    data = browser_of(html)
    assert data["sides"] == ["r, before training", "r, after training"]
    for image in data["images"]:
        before, after = image["sides"]
        assert before["status"] == "invalid_json"
        assert before["text"] == BROKEN
        assert not any(before["found"]["relations"])
        assert all(after["found"]["relations"])
        assert (before["recall"], after["recall"]) == (0, 1)
        assert image["picture"].startswith("data:image/jpeg;base64,")
    assert "alert(1)</script>" not in html
    assert "+100.00" in html


def test_numbers_are_those_of_the_command(settings: Settings, tmp_path: Path) -> None:
    """The rows are not in the order of their ids, and all boxes have the same score."""
    rows = open_rows(settings.data.heldout or "")
    graphs = [rows.row(i) for i in range(len(rows))]
    shuffled = tmp_path / "shuffled.jsonl"
    (tmp_path / "picture.jpg").write_bytes(open_dataset(settings.data.heldout or "")[0].image_bytes)
    keys = ("image_id", "objects", "relationships")
    lines = [{k: row[k] for k in keys} | {"image": "picture.jpg"} for row in reversed(graphs)]
    shuffled.write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = settings.data.model_copy(update={"heldout": str(shuffled)})
    settings = settings.model_copy(update={"data": data})
    write_answers(settings, "after", None)
    _spoil(settings.run.folder / "heldout-after.jsonl")
    found = heldout_result(settings, "after")
    assert found is not None
    request = Request(
        predictions=settings.run.folder / "heldout-after.jsonl",
        reference=str(shuffled),
        split="shuffled",
    )
    command = run_evaluation(request, tmp_path / "out")
    assert 0 < (command.objects["ap"] or 0) < 1
    for name in ("objects", "protocols", "answers", "intervals", "object_intervals"):
        assert getattr(found[0], name) == getattr(command, name)


def _spoil(file: Path) -> None:
    """Every other image has each object twice, first with a box that is too small."""
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for line in lines[::2]:
        corners = [(item["id"], *item["bbox"][:2]) for item in line["objects"]]
        small = [{"id": f"{name}0", "bbox": [x, y, x + 1, y + 1]} for name, x, y in corners]
        line["objects"] = small + line["objects"]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_run_without_answers_from_before(settings: Settings) -> None:
    write_answers(settings, "after", None)
    html = write_heldout_report(settings).read_text()
    assert browser_of(html)["sides"] == ["r, after training"]
    assert "<h2>Comparison</h2>" not in html
