import json
from pathlib import Path

from trainer.records import RunRecords


def rows(file: Path) -> list[int]:
    return [json.loads(line)["step"] for line in file.read_text().splitlines()]


def test_resume_moves_uncommitted_lines_aside(tmp_path: Path) -> None:
    records = RunRecords(tmp_path)
    for step in range(4):
        records.step({"step": step}, {"step": step, "group_ids": [f"g{step}"]})
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 4, "torn')
    RunRecords(tmp_path).cut_to(2)
    assert rows(tmp_path / "metrics.jsonl") == [0, 1]
    assert rows(tmp_path / "ledger.jsonl") == [0, 1]
    aside = (tmp_path / "rolled_back.jsonl").read_text().splitlines()
    assert len(aside) == 5
    records.step({"step": 2}, {"step": 2})
    assert rows(tmp_path / "ledger.jsonl") == [0, 1, 2]


def test_first_start_has_nothing_to_cut(tmp_path: Path) -> None:
    RunRecords(tmp_path).cut_to(0)
    assert (tmp_path / "ledger.jsonl").read_text() == ""
    assert not (tmp_path / "rolled_back.jsonl").exists()
