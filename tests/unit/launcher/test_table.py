"""What a run shows: from the metrics file to lines and tables."""

import io
import json
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest

from launcher.views.run_lines import step_line
from launcher.views.run_summary import closing_lines, summary_table
from launcher.views.run_table import RunTable, term_weights
from launcher.views.terminal import SafeConsole
from services.run_folder import RunFolder
from services.settings import Settings


def row(step: int, **more: Any) -> dict[str, Any]:
    return {
        "step": step,
        "policy_version": step,
        "reward_mean": 2.5 + step,
        "reward_terms": {"edge": 0.25, "format": 1.0},
        "failure_rate": 0.04,
        "policy_lag_mean": 0.5,
        "policy_lag_max": 1,
        "tokens_per_s": 1234.6,
        "phases_s": {"wait": 1.25, "train": 3.0},
    } | more


def write(file: Path, *rows: dict[str, Any]) -> None:
    file.parent.mkdir(exist_ok=True)
    with file.open("a") as stream:
        stream.writelines(json.dumps(r) + "\n" for r in rows)


def shown(file: Path, *rows: dict[str, Any], terminal: bool, width: int = 140) -> str:
    """What is shown while `rows` are written."""
    out = io.StringIO()
    console = SafeConsole(file=out, force_terminal=terminal, width=width, color_system=None)
    with RunTable(
        RunFolder(file.parent), 10, lambda: {"redis": "running", "reward": "waiting"}, console
    ) as table:
        write(file, *rows)
        table.update()
    return out.getvalue()


STATES = {
    "redis": "running",
    "reward": "running",
    **{f"rollout-{i}": "running" for i in range(5)},
    "trainer": "running",
}


def screen(
    folder: Path,
    width: int = 80,
    states: dict[str, str] | None = None,
    weights: dict[str, float] | None = None,
) -> list[str]:
    """What a terminal shows of a folder, line by line."""
    out = io.StringIO()
    console = SafeConsole(file=out, force_terminal=True, width=width, color_system=None)
    with RunTable(RunFolder(folder), 80, lambda: states or {}, console, weights):
        pass
    frame = out.getvalue().rpartition("\x1b[2K")[2]  # each is drawn over the one before
    return [line for line in re.sub(r"\x1b\[[?\d;]*[a-zA-Z]", "", frame).split("\n") if line]


def test_a_step_is_one_line_without_a_terminal(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    first, second = shown(file, row(0), row(1), terminal=False).splitlines()
    assert first == "step 1/10  reward 2.500  failed 4%  lag 0.5/1  1,235 tok/s  4.2 s"
    assert second.startswith("step 2/10  reward 3.500")


def test_a_resumed_run_prints_only_what_is_new(tmp_path: Path) -> None:
    file, out = tmp_path / "metrics.jsonl", io.StringIO()
    write(file, row(0), row(1), row(2))
    with RunTable(RunFolder(file.parent), 10, dict, SafeConsole(file=out, width=140)) as table:
        file.unlink()  # back to the checkpoint of step 1
        write(file, row(0))
        table.update()
        assert out.getvalue() == ""
        write(file, row(1, reward_mean=9.0))
        table.update()
    assert [line[:24] for line in out.getvalue().splitlines()] == ["step 2/10  reward 9.000 "]


def test_rolled_back_steps_leave_the_table(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    write(file, row(0), row(1), row(2))
    text = shown(file, row(1, reward_mean=9.0), terminal=True)
    last = text[text.rindex("step 2 of 10") :]
    assert "9.000" in last
    assert "4.500" not in last


def test_missing_values_are_shown_as_such() -> None:
    assert step_line({"step": 0}, 3).startswith("step 1/3  reward -  failed -  lag -/-")


def test_a_step_s_line_fits_80_columns_and_keeps_the_time_left() -> None:
    found = row(99_998, phases_s={"train": 12_345.6}, tokens_per_s=123_456.0, policy_lag_max=12)
    line = step_line(found, 100_000, "12 days, 10:05:30")  # type: ignore[arg-type]
    assert len(line) <= 80
    assert line.startswith("step 99999/100000  reward 100,000.500  ")
    assert line.endswith("  12 days, 10:05:30 left")


def test_a_step_of_sft_has_its_loss() -> None:
    found: Any = {"step": 3, "loss": 0.51234, "learning_rate": 1e-5, "phases_s": {"train": 2.0}}
    assert step_line(found, 9, "0:00:12") == (
        "step 3/9  loss 0.512  learning rate 1e-05  2.0 s  0:00:12 left"
    )


def test_the_live_table_shows_the_last_steps_and_the_processes(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    assert "reward waiting" in shown(file, terminal=True)
    text = shown(file, *(row(step) for step in range(20)), terminal=True)
    for expected in ("step 20 of 10", "edge", "format", "train s", "1,235", "4%", "redis running"):
        assert expected in text
    assert "22.500" not in text, "there is no step 21"
    assert "21.500" in text
    assert " 3.500" not in text, "early steps have scrolled away"


TERMS = {"format": 0.98, "node_category": 0.5, "node_box": 0.4, "triplet_f1": 0.125}
PHASES = dict.fromkeys(("wait", "prepare", "train", "record", "publish"), 1.25)
WEIGHTS = {"format": 0.5, "node_category": 0.5, "node_box": 0.5, "triplet_f1": 7.0}
ALWAYS = ["step", "reward", "trend", "failed", "lag", "tok/s"]


def recorded(folder: Path, *evaluations: dict[str, Any]) -> None:
    """33 steps that earn more and more, and evaluations of some versions."""
    rows = [row(step, reward_terms=TERMS, phases_s=PHASES, num_steps=80) for step in range(33)]
    write(folder / "metrics.jsonl", *rows)
    write(folder / "evaluations.jsonl", *evaluations)


@pytest.mark.parametrize("width", [60, 80, 100, 120, 160])
def test_no_line_is_longer_than_the_terminal_is_wide(tmp_path: Path, width: int) -> None:
    """What matters is there on 60 columns already; the wider, the more of the rest."""
    recorded(tmp_path, {"step": 30, "num_images": 64, "triplet_recall": 0.2, "triplet_f1": 0.25})
    lines = screen(tmp_path, width, STATES, WEIGHTS)
    assert max(len(line.rstrip()) for line in lines) <= width
    assert lines[0].strip() == "step 33 of 80, 0:04:54 left"
    header = lines[1]
    assert header.split()[:4] == ["step", "reward", "trend", "held-out"]
    assert all(name in header.split() for name in ALWAYS)
    assert "…" not in "".join(lines)
    rest = ["s/step", "triplet_f1", "format", "node_category", "node_box", "train s"]
    there = [name in header for name in rest]
    assert there == sorted(there, reverse=True), "the first ones that have room"
    assert sum(there) == {60: 0, 80: 2, 100: 4, 120: 5, 160: 6}[width]
    for name, state in STATES.items():
        assert any(f"{name} {state}" in line for line in lines), "no line ends inside"


def test_each_row_has_its_trend_and_the_score_of_the_last_evaluation(tmp_path: Path) -> None:
    """The reward rises by 1 a step, so the means of ten steps are 10 apart."""
    found = [{"step": step, "triplet_f1": score} for step, score in ((20, 0.125), (30, 0.25))]
    recorded(tmp_path, *found)
    cells = [line.split() for line in screen(tmp_path)[2:14]]
    assert [line[:4] for line in cells[7:10]] == [
        ["29", "30.500", "+10.000", "0.125"],
        ["30", "31.500", "+10.000", "0.250"],
        ["31", "32.500", "+10.000", "0.250"],
    ]


def test_without_an_evaluation_the_heaviest_term_stands_beside_the_reward(tmp_path: Path) -> None:
    recorded(tmp_path)
    lines = screen(tmp_path, weights=WEIGHTS)
    assert lines[1].split()[:5] == ["step", "reward", "trend", "triplet_f1", "failed"]
    assert lines[-1].split()[:4] == ["33", "34.500", "+10.000", "0.125"]
    custom = {"name": "mine", "terms": {"format": 1.0, "polite": 2.0}}
    for rubric, weight in (("balanced", 7.0), (custom, 2.0)):
        tree = {"model": {"path": "x"}, "data": {"train": "x"}, "reward": {"rubric": rubric}}
        assert max(term_weights(Settings.model_validate(tree)).values()) == weight


def test_early_steps_have_a_trend_as_far_as_there_are_steps(tmp_path: Path) -> None:
    write(tmp_path / "metrics.jsonl", row(0), row(1), row(2, reward_mean=None), row(3))
    cells = [line.split()[1:3] for line in screen(tmp_path)[2:]]
    assert cells == [["2.500", "-"], ["3.500", "+1.000"], ["-", "+1.000"], ["5.500", "+2.000"]]


def beat(folder: Path, **more: Any) -> None:
    """As rank 0 of the trainer writes it."""
    (folder / "ranks").mkdir(exist_ok=True)
    found = {"phase": "load", "step": 0, "done": False, "failed": None} | more
    (folder / "ranks/rank-0.json").write_text(json.dumps(found))


def test_what_a_run_waits_for_is_said_with_a_count(tmp_path: Path) -> None:
    loading = {"reward": "running", "rollout": "starting", "trainer": "starting"}
    assert screen(tmp_path, states=loading)[:2] == [
        "no step of 80 yet",
        "starting rollout, trainer: the model is loaded",
    ]
    beat(tmp_path)
    assert screen(tmp_path)[1] == "the trainer loads the model and waits for the services"
    evaluating = {"step": 0, "label": "before", "done": 120, "total": 500}
    (tmp_path / "evaluating.json").write_text(json.dumps(evaluating))
    assert screen(tmp_path)[1] == "evaluating version 0, 120 of 500 images"
    old = tmp_path / "evaluating.json"
    os.utime(old, (1, 1))  # of a trainer that was killed
    beat(tmp_path, phase="wait", step=12)
    assert screen(tmp_path)[1] == "step 13: the trainer waits for groups"
    beat(tmp_path, phase="wait", step=12, done=True)
    assert screen(tmp_path) == ["no step of 80 yet"]


def test_a_long_wait_is_a_line_where_there_is_no_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step is no wait, however long it takes, nor is an evaluation beside it."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    out = io.StringIO()
    with RunTable(RunFolder(tmp_path), 80, dict, SafeConsole(file=out, width=80)) as table:
        for done, label, phase in (
            (40, "before", "load"),
            (90, "before", "load"),
            (7, "now", "wait"),
        ):
            found = {"step": 0 if label == "before" else 9, "label": label, "done": done}
            (tmp_path / "evaluating.json").write_text(json.dumps(found | {"total": 500}))
            beat(tmp_path, phase=phase)
            for _ in range(20):
                table.update()
                now[0] += 1.0
    assert out.getvalue().splitlines() == [
        "waiting 5 s: evaluating version 0, 40 of 500 images",
        "waiting 35 s: evaluating version 0, 90 of 500 images",
    ]


def test_the_summary_compares_numbers_and_nothing_else() -> None:
    table = summary_table(
        {"before": {"recall": 0.25, "name": "x"}, "after": {"recall": 0.5, "name": "y", "new": 1}}
    )
    out = io.StringIO()
    SafeConsole(file=out, width=80).print(table)
    assert "+0.25" in out.getvalue()
    assert table.row_count == 1


def test_a_demo_ends_with_what_improved_where_to_look_and_what_is_next() -> None:
    names = ("triplet_recall", "triplet_f1", "mean_predicate_recall", "object_f1")
    before, after = dict.fromkeys(names, 0.125), dict.fromkeys(names, 0.75)
    folder = RunFolder(Path("runs/demo"))
    better, look, following = closing_lines({"before": before, "after": after}, folder)
    assert better == "improved on held-out images: triplet recall 0.125 to 0.750"
    assert "runs/demo/report.html" in look
    assert "sgg-rl predict PICTURES --model runs/demo" in following
    assert "sgg-rl demo --data" in following
    assert len(following) <= 80
    worse = closing_lines({"before": after, "after": before}, folder)[0]
    assert worse == "improved on held-out images: nothing; train more steps"


def test_the_time_left_is_that_of_the_shown_steps_pace(tmp_path: Path) -> None:
    """The pace is that of the phases: between the first two the run was down for a day."""
    file, out = tmp_path / "metrics.jsonl", io.StringIO()
    day = 24 * 3600.0
    write(file, row(0, time=100.0, num_steps=20, phases_s={"wait": 50.0, "train": 20.0}))
    with RunTable(RunFolder(file.parent), None, dict, SafeConsole(file=out, width=200)) as table:
        later = {"num_steps": 20, "phases_s": {"train": 55.0}}
        write(file, row(1, time=day, **later), row(2, time=day + 60.0, **later))
        table.update()
    first, second = out.getvalue().splitlines()
    assert first.startswith("step 2/20")
    assert "left" not in first
    assert second.startswith("step 3/20")
    assert second.endswith("0:17:00 left")
    text = shown(file, row(3, time=2 * day, phases_s={"train": 60.0}), terminal=True)
    assert "step 4 of 10, 0:06:00 left" in text


@pytest.mark.parametrize("terminal", [True, False])
def test_evaluations_are_shown_as_they_come(tmp_path: Path, terminal: bool) -> None:
    out = io.StringIO()
    console = SafeConsole(file=out, force_terminal=terminal, width=140, color_system=None)
    file = tmp_path / "evaluations.jsonl"
    found = {
        "step": 4,
        "num_images": 64,
        "triplet_recall": 0.2134,
        "triplet_f1": 0.2,
        "failure_rate": 0.03,
        "policy_version_oldest": 4,
        "policy_version_newest": 6,
        "seconds": 12.14,
    }
    write(file, found | {"step": 2, "triplet_recall": 0.9})
    with RunTable(RunFolder(tmp_path), 10, dict, console) as table:
        table.update()
        assert terminal == ("0.900" in out.getvalue()), "of the run that is resumed"
        write(file, found)
        table.update()
        draft = tmp_path / "draft"
        draft.write_text(file.read_text())
        draft.rename(file)  # as a resumed trainer does
        table.update()
        if not terminal:
            assert out.getvalue().count("evaluated version") == 1
    wanted = "evaluated version 4 (4 to 6), strict  triplet recall 0.213  F1 0.200  failed 3%"
    assert wanted in out.getvalue()
    assert len(wanted) <= 80
