"""What the console reads of a run: curves of bounded size, states, healthy ranges, settings."""

import json
import os
import random
import time
from dataclasses import replace
from pathlib import Path

import pytest

from console.reading.charts import CHARTS, drawn_keys, figures
from console.reading.curves import MAX_POINTS, Curves, numbers
from console.reading.guide import guides, healthy_range
from console.reading.health import findings, sentence, tiles
from console.reading.overview import Overviews
from console.reading.run import RunReader
from console.reading.samples import sampled_rows
from console.reading.settings import differing, setting_rows
from console.reading.state import read_state
from console.runs import Run
from console.views import number, sparkline
from services.run_folder import RunFolder, TableFollower
from tests.console_runs import evaluation_row, make_run, step_row, write_events

RAISED_BY_DOCS = {
    "failure_rate": (None, 0.1),
    "truncated_rate": (None, 0.05),
    "ratio_mean": (0.95, 1.05),
    "clip_fraction": (None, 0.1),
    "mismatch_kl": (-0.01, 0.01),
    "mismatch_k3": (None, 0.01),
    "num_dead": (None, 0.0),
    "trainer_idle_fraction": (None, 0.2),
    "rank_imbalance": (None, 0.1),
    "reward_mean": (None, None),
    "num_stale": (None, None),
}
"""Ranges that docs/metrics.md names at the start of a cell, or does not name."""

DOUBTS = (
    "1 line of metrics.jsonl is no JSON",
    "2 lines of metrics.jsonl are without a step",
    "two trainers",
)


def lines(file: Path, rows: list[dict[str, object]]) -> None:
    with file.open("a") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows)


def test_healthy_ranges_are_those_of_the_documentation() -> None:
    known = guides()
    assert {key: (known[key].low, known[key].high) for key in RAISED_BY_DOCS} == RAISED_BY_DOCS
    assert "fewer rollout servers" in known["sampler_idle_fraction"].healthy
    assert known["entropy"].healthy.startswith("falls slowly")
    assert "`" not in known["groups_without_spread"].healthy
    assert "](" not in known["reward_terms"].healthy, "links become their words"
    drawn = {key for chart in CHARTS if chart.source == "steps" for key in chart.keys}
    assert {key.rstrip("/") for key in drawn} <= known.keys()
    assert healthy_range("1e-6 in float32") == (None, None)


def test_a_point_is_the_mean_of_its_rows_whatever_their_number(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    values = [random.Random(0).random() for _ in range(3 * MAX_POINTS)]
    curves = Curves(file)
    for start in range(0, len(values), 700):
        part = values[start : start + 700]
        lines(file, [{"step": start + i, "x": value} for i, value in enumerate(part)])
        curves.update()
    assert curves.rows_per_point == 4
    shown = curves.points({"step": False, "x": True, "none": False})
    assert len(shown["mean"]["x"]) == len(values) // 4 <= MAX_POINTS
    for i in (0, 1, 700):
        of_point = values[4 * i : 4 * i + 4]
        assert shown["mean"]["x"][i] == pytest.approx(sum(of_point) / 4, rel=1e-4)
        assert shown["low"]["x"][i] == pytest.approx(min(of_point), rel=1e-4)
        assert shown["high"]["x"][i] == pytest.approx(max(of_point), rel=1e-4)
        assert shown["mean"]["step"][i] == 4 * i + 1.5
    assert shown["low"].keys() == {"x"}
    assert "none" not in shown["mean"]


def test_a_file_is_read_in_pieces_and_what_is_no_row_is_counted(tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl"
    file.write_text('{"a": 1}\n{"half\n[1]\n' + json.dumps({"a": "x" * 300}) + '\n{"a": 2}\n{"a": ')
    follower = TableFollower[dict[str, object]](file)
    found, reads = list(follower.read(20).rows), 1
    while follower.is_behind:
        found += follower.read(20).rows
        reads += 1
    assert [row["a"] for row in found] == [1, "x" * 300, 2]
    assert follower.num_unreadable == 2
    assert reads > 2
    with file.open("a") as stream:
        stream.write("3}\n")
    assert follower.read(20).rows == [{"a": 3}]
    file.unlink()
    file.write_text("")
    assert follower.read().cut
    assert follower.num_unreadable == 0


def test_only_what_is_new_is_asked_for(tmp_path: Path) -> None:
    files = make_run(tmp_path / "run", steps=50, total=100)
    reader = RunReader(Run("run", files.path))
    reader.update()
    first = reader.points()
    assert first["steps"]["start"] == 0
    lines(files.metrics, [step_row(50, 100, 0.0, random.Random(0))])
    reader.update()
    second = reader.points(first["mark"])
    assert second["steps"]["start"] == 50
    assert second["steps"]["mean"]["step"] == [50]
    rows = first["mark"].rpartition("-")[0].rpartition("-")[0]
    for bad in ("²", "9" * 18, "9" * 5000):
        assert reader.points(f"{rows}-{bad}-0")["steps"]["start"] == 0
    for nonsense in ("x", "0-1-y-2", "9-1-50-5.0"):
        assert reader.points(nonsense)["steps"]["start"] == 0
    files.metrics.write_text(json.dumps(step_row(0, 100, 0.0, random.Random(0))) + "\n")
    reader.update()
    again = reader.points(second["mark"])
    assert (again["steps"]["start"], again["steps"]["mean"]["step"]) == (0, [0])


def test_events_of_each_kind_are_kept_and_two_writers_are_named(tmp_path: Path) -> None:
    files = make_run(tmp_path / "run", steps=3, total=9)
    write_events(files, (1, "server_died", "gone"), *((i, "published", "v") for i in range(400)))
    lines(files.metrics, [step_row(1, 9, 0.0, random.Random(0)), {"step": "x"}, {}])
    with files.metrics.open("a") as stream:
        stream.write("no json\n")
    lines(files.events, [{"schema": 9, "time": "later", "step": 1, "kind": "x"}])
    reader = RunReader(Run("run", files.path))
    reader.update()
    events = reader.points()["events"]
    assert [e["text"] for e in events if e["bad"]] == ["gone"]
    assert sum(e["kind"] == "published" for e in events) == 100
    assert [
        words in doubt for words, doubt in zip(DOUBTS, reader.doubts(is_over=True), strict=True)
    ] == [True] * 3
    with files.evaluations.open("a") as stream:
        stream.write('{"step": 9')
    reader.update()
    half = "The last line of evaluations.jsonl is half written, and left out."
    assert half in reader.doubts(is_over=True)
    assert half not in reader.doubts(is_over=False), "its writer may be at it"


@pytest.mark.parametrize(
    ("made", "word"),
    [
        ({"steps": 5, "total": 9}, "live"),
        ({"steps": 0, "total": 9}, "starting"),
        ({"steps": 5, "total": 9, "ended_s": 900}, "stopped"),
        ({"steps": 9, "total": 9, "ended_s": 900}, "finished"),
        ({"steps": 5, "total": 9, "ended_s": 900, "failed": "no memory"}, "failed"),
        ({"steps": 5, "total": 9, "done": True}, "finished"),
    ],
)
def test_the_state_of_a_run(made: dict[str, object], word: str, tmp_path: Path) -> None:
    files = make_run(tmp_path / "run", **made)  # type: ignore[arg-type]
    state = read_state(files)
    assert state.word == word
    assert state.reason == made.get("failed")
    text = sentence(state, sampled_rows(files.metrics, 20))
    if word == "live":
        assert text.startswith("Training: step 5 of 9, 3 min left. The trainer waits ")
    if word == "failed":
        assert text == "Failed: step 5 of 9, the last one 15 min ago. Go on with --resume."
        earlier = replace(state, at=state.at - 7200)
        assert "the last one 2 h ago" in sentence(earlier, []), "time goes on after it was read"


def test_an_overview_is_read_again_when_the_run_has_changed(tmp_path: Path) -> None:
    files = make_run(tmp_path / "run", steps=5, total=9)
    overviews, run = Overviews(), Run("run", files.path)
    first = overviews.of(run)
    assert overviews.of(run) is first
    assert (len(first.reward), first.heldout_measure, first.identity.rubric) == (
        5, "triplet_f1", "balanced",
    )  # fmt: skip
    lines(files.metrics, [step_row(5, 9, 0.0, random.Random(0))])
    assert len(overviews.of(run).reward) == 6


def test_a_run_that_falls_silent_before_its_first_step_has_stopped(tmp_path: Path) -> None:
    files = make_run(tmp_path / "run", steps=0, total=9)
    log, long_ago = files.logs / "trainer.log", time.time() - 900
    (files.ranks / "rank-0.json").unlink()
    files.metrics.unlink()
    for file in (files.config, files.evaluations):
        os.utime(file, (long_ago, long_ago))
    overviews, run = Overviews(), Run("run", files.path)
    assert overviews.of(run).state.word == "starting"
    os.utime(log, (long_ago, long_ago))
    assert overviews.of(run).state.word == "stopped"


def test_a_row_without_a_time_says_no_age(tmp_path: Path) -> None:
    files = make_run(tmp_path / "run", steps=5, total=9, ended_s=900)
    with files.metrics.open("a") as stream:
        stream.write('{"step": 5, "policy_version": 5, "time": NaN}\n')
    assert sentence(read_state(files), []) == "Stopped: step 6 of 9. Go on with --resume."
    files.metrics.write_text('{"step": 0, "policy_version": 0, "time": "now"}\n')
    assert sentence(read_state(files), []) == "Stopped: step 1. Go on with --resume."


def test_huge_numbers_are_short_and_drawn() -> None:
    assert [number(value) for value in (1e15, -1.5e308, 2134.5, 0.12345, 3.0)] == [
        "1.000e+15", "-1.500e+308", "2,134", "0.1235", "3",
    ]  # fmt: skip
    drawn = sparkline([-1.7e308, 0.0, 1.7e308], "loss")
    assert 'points="3.0,27.0 60.0,15.0 117.0,3.0"' in drawn
    assert "nan" not in drawn
    assert tiles([{"loss": 1e308}] * 20, [])[0].more == "recently 1.000e+308"


def test_a_long_file_gives_a_few_rows_and_its_last(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    lines(file, [{"step": i, "text": "x" * 5000} for i in range(2000)])
    steps = [row["step"] for row in sampled_rows(file, 20)]
    assert steps == sorted(steps)
    assert 15 <= len(steps) <= 21
    assert (steps[0], steps[-1]) == (0, 1999)
    assert sampled_rows(tmp_path / "none", 20) == []


def test_numbers_of_a_row_may_be_anything() -> None:
    row = {"a": True, "b": float("nan"), "c": {"d": 1, "e": {"f": 2}}, "g": [1, 2], "h": 10**400}
    assert dict(numbers(row)) == {"c/d": 1.0, "g/low": 1.0, "g/high": 2.0}
    keys = drawn_keys(figures([], [key for key, _ in numbers(evaluation_row(0, 9, 0.0))]))
    assert "intervals/triplet_f1/high" in keys["evaluations"]


def test_what_is_unhealthy_is_found_by_its_mean() -> None:
    rows = [{"truncated_rate": 0.2, "mismatch_kl": -0.5 + i % 2, "entropy": 9.0} for i in range(6)]
    assert [finding.guide.key for finding in findings(rows)] == ["truncated_rate"]
    assert findings(rows[:3]) == []


def test_settings_beside_their_defaults_and_another_runs() -> None:
    tree = {"trainer": {"num_steps": 5, "gone": 1}, "later": {"x": "y"}, "loose": 3}
    rows = setting_rows(tree)
    steps, gone = rows["trainer"]
    assert (steps.value, steps.is_changed, steps.is_known) == ("5", True, True)
    assert not gone.is_known
    assert [row.is_known for row in rows["later"]] == [False]
    assert differing([tree, {"trainer": {"num_steps": 6, "gone": 1}}]) == [
        ("trainer.num_steps", ["5", "6"]),
        ("later.x", ["y", ""]),
    ]


def test_a_run_is_known_by_what_it_writes_first(tmp_path: Path) -> None:
    make_run(tmp_path / "a", steps=1, total=2)
    (tmp_path / "photos").mkdir()
    from console.runs import Runs

    runs = Runs(tmp_path)
    assert [run.name for run in runs.all()] == ["a"]
    assert runs.others() == ["photos"]
    assert [run.name for run in Runs(tmp_path / "a").all()] == ["a"]
    assert RunFolder(runs.named("a").path).config.is_file()
