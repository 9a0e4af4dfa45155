"""A file that grows, is half written, cut back by a resume, or gone."""

from pathlib import Path

import pytest

from services.run_folder import TAIL_BYTES, StepRow, TableFollower
from trainer.records.files import StepLines


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
