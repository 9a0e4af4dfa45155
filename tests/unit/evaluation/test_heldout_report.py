import json
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from evaluation.evaluate_files import Request, run_evaluation
from evaluation.inference.answers import answered_line
from evaluation.inference.record import asked_fields
from evaluation.of_a_run import results
from evaluation.of_a_run.heldout import Label
from evaluation.of_a_run.kept_answers import heldout_result
from evaluation.of_a_run.report import write_heldout_report
from evaluation.of_a_run.results import ResultsProcess
from evaluation.report.asking import asked_in_words
from scene_data.dataset import open_dataset
from scene_data.reading.sources import open_rows
from scene_data.templates import answer_text
from scene_data.toy.scenes import make_toy
from scene_graph.boxes import RELATIVE_1000
from services.schemas.rollouts import Completion, VersionSpan
from services.settings import Settings, dump_settings

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


def write_answers(settings: Settings, label: Label, text: str | None) -> None:
    """The same text for each image, or the right answer; and how it was asked for."""
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
    file = settings.run.files.heldout(label)
    file.write_bytes(b"\n".join(lines))
    versions: dict[Label, str] = {"before": "0", "now": "3 to 4", "after": "8"}
    asked = {
        "policy_version": versions[label],
        "servers": ["http://a:1", "http://<b>:1"],
        **asked_fields(settings),
    }
    file.with_suffix(".settings.json").write_text(json.dumps(asked))


def browser_of(html: str) -> Any:
    return json.loads(html.partition('id="browser-data">')[2].partition("</script>")[0])


def test_before_and_after_stand_beside_each_other(settings: Settings) -> None:
    write_answers(settings, "before", BROKEN)
    write_answers(settings, "after", None)
    html = report_of(settings)
    data = browser_of(html)
    assert data["sides"] == ["r, before training", "r, after training"]
    assert "The model answered greedily, with at most 1,024 tokens." in html
    assert "No answer was constrained. Version 8 answered, on 2 servers." in html
    assert "http://a:1, http://&lt;b&gt;:1" in html
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


def report_of(settings: Settings) -> str:
    file = write_heldout_report(settings)
    assert file is not None
    return file.read_text()


def test_while_a_run_trains_the_last_version_stands_beside_the_first(settings: Settings) -> None:
    assert write_heldout_report(settings) is None
    write_answers(settings, "before", BROKEN)
    assert browser_of(report_of(settings))["sides"] == ["r, before training"]
    write_answers(settings, "now", None)
    html = report_of(settings)
    assert browser_of(html)["sides"] == ["r, before training", "r, version 3 to 4"]
    assert "Versions 3 to 4 answered, on 2 servers." in html
    write_answers(settings, "after", BROKEN)  # of a run that went on, with more steps
    assert browser_of(report_of(settings))["sides"][1] == "r, version 3 to 4"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, ""),
        ({"temperature": "hot", "constrain": ["all"], "top_p": None}, ""),
        (
            {"temperature": 0.7, "top_p": 0.9, "top_k": 5, "best_of": 4, "constrain": "failures"},
            "The model answered by sampling (temperature 0.7, top-p 0.9, top-k 5, the likeliest of "
            "4 answers). An image whose free answer had no graph was asked about again under the "
            "grammar of an answer.",
        ),
        ({"policy_version": 7, "servers": ["http://a"]}, "Version 7 answered, on 1 server."),
    ],
)
def test_how_a_model_was_asked_is_said_as_far_as_it_is_known(
    settings: dict[str, Any], words: str
) -> None:
    assert asked_in_words(settings) == words


def test_results_are_drawn_by_a_process_that_yields_and_may_fail(
    settings: Settings, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure is said once, a process that takes too long is ended."""
    files = settings.run.files
    write_answers(settings, "after", None)
    (files.path / "metrics.jsonl").write_text('{"step": 0, "reward_mean": 1.0}\n')
    files.config.write_text("[run]\nname = 3\n")
    caplog.set_level(logging.WARNING, logger=results.logger.name)
    drawn = ResultsProcess(files)
    assert drawn.finish() == []
    with monkeypatch.context() as failing:
        failing.setattr(sys, "executable", "/bin/false")
        assert drawn.finish() == []
    assert len(caplog.records) == 1
    assert f"no report: cannot use {files.config}" in caplog.text
    assert "logs/report.log" in caplog.text
    files.config.write_text(dump_settings(settings))
    drawn.begin()
    process = drawn._process
    assert process is not None
    assert os.getpriority(os.PRIO_PROCESS, process.pid) == 19
    drawn.begin()
    assert drawn._process is process, "one at a time"
    names = [file.name for file in drawn.finish()]
    assert process.returncode == -signal.SIGKILL, "the last drawing waits for no other"
    assert names == ["learning.png", "reward.png", "report.html"]
    monkeypatch.setattr(results, "_LONGEST_S", 0.0)
    late = ResultsProcess(files)
    late.finish()
    assert late._process is None
    assert caplog.records[1].message == "no report: it took over 0 s"


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
    html = report_of(settings)
    assert browser_of(html)["sides"] == ["r, after training"]
    assert "<h2>Comparison</h2>" not in html
