"""A file that grows, is half written, cut back by a resume, or gone."""

from pathlib import Path

import pytest

from services.run_folder import (
    TAIL_BYTES,
    RunFolder,
    StepRow,
    TableFollower,
    TrainerSign,
    last_error,
    read_progress,
    read_trainer,
)
from trainer.ranks.watch import RankWatch, watched
from trainer.records.step_lines import StepLines


def steps(found: list[StepRow]) -> list[int]:
    return [row["step"] for row in found]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def test_each_line_is_read_once(path: Path) -> None:
    file, lines = TableFollower[StepRow](path, tail_bytes=TAIL_BYTES), StepLines(path)
    assert file.read() == ([], False)
    lines.append({"step": 0})
    first = file.read()
    assert (steps(first.rows), first.cut) == ([0], True)
    lines.append({"step": 1})
    lines.append({"step": 2})
    then = file.read()
    assert (steps(then.rows), then.cut) == ([1, 2], False)
    assert file.read() == ([], False)


def test_half_a_line_waits_for_its_end(path: Path) -> None:
    file = TableFollower[StepRow](path, tail_bytes=TAIL_BYTES)
    path.write_text('{"step": 0}\n{"st')
    assert steps(file.read().rows) == [0]
    assert file.read().rows == []
    with path.open("a") as stream:
        stream.write('ep": 1}\n')
    assert steps(file.read().rows) == [1]


def test_a_resume_that_cuts_the_file_starts_anew(path: Path) -> None:
    file, lines = TableFollower[StepRow](path, tail_bytes=TAIL_BYTES), StepLines(path)
    for step in range(5):
        lines.append({"step": step})
    assert steps(file.read().rows) == [0, 1, 2, 3, 4]
    lines.cut_to(2)
    for step in range(2, 7):  # longer than before: its size alone says nothing
        lines.append({"step": step})
    again = file.read()
    assert (steps(again.rows), again.cut) == ([0, 1, 2, 3, 4, 5, 6], True)


def test_a_file_cut_in_place_starts_anew(path: Path) -> None:
    file = TableFollower[StepRow](path, tail_bytes=TAIL_BYTES)
    path.write_text('{"step": 0}\n{"step": 1}\n')
    file.read()
    with path.open("r+") as stream:
        stream.truncate(len('{"step": 0}\n'))
    again = file.read()
    assert (steps(again.rows), again.cut) == ([0], True)


def test_a_file_that_is_gone_is_empty(path: Path) -> None:
    file = TableFollower[StepRow](path, tail_bytes=TAIL_BYTES)
    path.write_text('{"step": 0}\n')
    file.read()
    path.unlink()
    assert file.read() == ([], True)
    assert file.read() == ([], False)


def test_what_is_no_line_is_left_out(path: Path) -> None:
    path.write_bytes(b'{"step": 0}\n{"step": 1, "tor\n[1]\n\xff\xfe\n\n{"step": 2}\n')
    assert steps(TableFollower[StepRow](path, tail_bytes=TAIL_BYTES).read().rows) == [0, 2]


def test_of_a_long_file_only_the_end_is_read(path: Path) -> None:
    lines = [f'{{"step": {step}, "x": "{"x" * 1000}"}}\n' for step in range(1000)]
    path.write_text("".join(lines))
    file = TableFollower[StepRow](path, tail_bytes=TAIL_BYTES)
    found = steps(file.read().rows)
    assert found == list(range(found[0], 1000))
    assert 0 < len(found) <= TAIL_BYTES // 1000
    with path.open("a") as stream:
        stream.write('{"step": 1000}\n')
    assert steps(file.read().rows) == [1000]
    assert steps(TableFollower[StepRow](path).read().rows) == list(range(1001))


def test_progress_counts_the_steps_of_both_kinds_of_training(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert read_progress(folder) is None
    lines = StepLines(folder.metrics)
    for step in (3, 4):
        row = {"step": step, "policy_version": step, "num_steps": 10, "reward_mean": 2.0}
        lines.append(row | {"loss": 0.1, "num_servers": 3, "phases_s": {"wait": 1.0, "train": 2.0}})
    found = read_progress(folder)
    assert found is not None
    assert (found.step, found.reward, found.loss, found.num_servers) == (5, 2.0, None, 3)
    assert found.left_s == pytest.approx(15.0)
    folder.metrics.unlink()
    lines.append({"step": 10, "num_steps": 10, "loss": 0.5, "phases_s": {"train": 2.0}})
    found = read_progress(folder)
    assert found is not None
    assert (found.step, found.reward, found.loss, found.left_s) == (10, None, 0.5, 0.0)
    assert str(found) == "step 10 of 10: loss 0.500, 0:00:00 left"


@pytest.mark.parametrize("at", ["NaN", "Infinity", '"now"', "null", "0", "true", "1" + "0" * 400])
def test_a_row_without_a_usable_time_has_no_age(at: str, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.metrics.write_text(f'{{"step": 3, "num_steps": 9}}\n{{"step": 4, "time": {at}}}\n')
    found = read_progress(folder)
    assert found is not None
    assert (found.last_step_s, found.num_steps) == (None, 9)


def test_what_only_looks_like_a_log_is_passed_over(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    (folder.logs / "folder.log").mkdir(parents=True)
    (folder.logs / "odd.log").write_text("2026-13-45 25:61:61,000 ERROR   x: no such date\n")
    found = last_error(folder)
    assert found is not None
    assert (found.log, found.line.strip()) == ("odd.log", "x: no such date")


def test_the_newest_error_of_all_logs_is_found(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert last_error(folder) is None
    folder.logs.mkdir()
    texts = {
        "reward.log": "2026-01-01 10:00:01,000 ERROR   reward x: first\n",
        "trainer.log": "2026-01-01 10:00:02,000 ERROR   trainer[0] x: then\n"
        "2026-01-01 10:00:03,000 WARNING trainer[0] x: ERROR is no level here\n",
        "redis.log": "started\n",
    }
    for name, text in texts.items():
        (folder.logs / name).write_text(text)
    found = last_error(folder)
    assert found is not None
    assert (found.log, found.line.strip()) == ("trainer.log", "trainer[0] x: then")
    (folder.logs / "sft.log").write_text("sgg-rl: there is no model\n")  # its last words, just now
    found = last_error(folder)
    assert found is not None
    assert found.line == "there is no model"


def test_a_trainer_s_sign_is_that_of_rank_0(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert read_trainer(folder) is None
    watches = [RankWatch(folder.ranks, rank=rank, size=2, limit_s=60.0) for rank in range(2)]
    for watch in watches:
        with watched(watch):
            watch.enter("train", 7)
    found = read_trainer(folder)
    assert found is not None
    sign = TrainerSign(2, "train", 7, done=True, failed=None, ago_s=found.ago_s)
    assert found == sign
