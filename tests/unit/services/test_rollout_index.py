"""The index of a run's groups: pages, filters and orders, and lines that cannot be read."""

import random
from pathlib import Path
from typing import Any

import pytest

from services.errors import InvalidInputError, NotFoundError
from services.run_folder import backwards
from services.run_folder.events import read_events
from services.run_folder.index import RolloutIndex, Sort
from services.run_folder.index_line import IndexLine, RolloutFilter
from trainer.records.step_lines import StepLines


def line(step: int, position: int, **changes: Any) -> IndexLine:
    group = {"group_id": f"run-e0-r{position}", "file": f"step-{step:06d}.rank0.jsonl", "row": 0}
    return IndexLine(**{"step": step, "position": position, "state": "trained"} | group | changes)


def write(run: Path, lines: list[IndexLine], rank: int = 0) -> Path:
    file = run / f"rollouts/index.rank{rank}.jsonl"
    file.parent.mkdir(exist_ok=True)
    StepLines(file).append(*lines)
    return file


def pages(run: Path, wanted: RolloutFilter, sort: Sort = "newest", limit: int = 7) -> list[int]:
    """Positions of all pages, one after the other."""
    index, found, cursor = RolloutIndex(run), list[int](), None
    while True:
        page = index.page(wanted, sort, cursor, limit)
        assert len(page.lines) == limit or page.cursor is None
        found += [each.position for each in page.lines]
        if (cursor := page.cursor) is None:
            return found


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two ranks of 40 steps, with three groups a step each; blocks are shorter than a line."""
    monkeypatch.setattr(backwards, "BLOCK_BYTES", 150)
    rng = random.Random(7)
    means = [rng.choice([0.5, 1.0, 1.5, 2.0]) for _ in range(240)]
    for rank in (0, 1):
        write(
            tmp_path,
            [
                line(step, p, mean=means[p], std=means[p] / 2, image=f"{p % 5}" * 64)
                for step in range(40)
                for p in range(6 * step + rank, 6 * step + 6, 2)
            ],
            rank,
        )
    return tmp_path


def test_pages_of_all_ranks_are_the_groups_in_their_order(run: Path) -> None:
    everything = RolloutFilter()
    assert pages(run, everything) == list(range(239, -1, -1))
    assert pages(run, everything, "oldest") == list(range(240))
    means = {each.position: each.mean or 0 for each in RolloutIndex(run).page(limit=240).lines}
    newest = sorted(means, reverse=True)
    assert pages(run, everything, "highest") == sorted(newest, key=lambda p: -means[p])
    assert pages(run, everything, "widest") == sorted(newest, key=lambda p: -means[p])
    assert pages(run, everything, "lowest") == sorted(newest, key=lambda p: means[p])


def test_a_page_reads_no_more_than_it_needs(run: Path) -> None:
    index = RolloutIndex(run)
    assert index.last_step == 39
    assert index.page(limit=5).scanned < 15
    middle = index.page(RolloutFilter(step_from=20, step_to=20))
    assert sorted(each.position for each in middle.lines) == list(range(120, 126))
    assert middle.scanned < 20
    assert index.page(RolloutFilter(step_to=20), cursor="-20:-121:1:0", limit=4).scanned < 20


@pytest.mark.parametrize("torn", range(0, 40, 3))
def test_a_step_is_found_beside_lines_that_cannot_be_read(run: Path, torn: int) -> None:
    file = run / "rollouts/index.rank0.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    lines[3 * torn : 3 * torn] = [b"{torn\n"] * 9
    file.write_bytes(b"".join(lines))
    for step in range(0, 40, 7):
        found = pages(run, RolloutFilter(step_from=step, step_to=step))
        assert found == list(range(6 * step + 5, 6 * step - 1, -1))


def test_a_page_goes_on_where_the_one_before_ended_while_the_run_writes(run: Path) -> None:
    first = RolloutIndex(run).page(limit=4)
    write(run, [line(40, 240), line(40, 241)])
    assert first.cursor is not None
    then = RolloutIndex(run).page(cursor=first.cursor, limit=4)
    assert [each.position for each in then.lines] == [235, 234, 233, 232]


FULL = {
    "mean": 1.0,
    "std": 0.5,
    "statuses": {"ok": 7, "no_answer": 1},
    "predicates": ["on", "next to"],
    "objects": ["café"],
    "image": "ab" * 32,
    "truncated": 2,
    "versions": [3, 4],
}


@pytest.mark.parametrize(
    ("wanted", "fits"),
    [
        ({"step_from": 5, "step_to": 5}, True),
        ({"step_from": 6}, False),
        ({"step_to": 4}, False),
        ({"reward_min": 1.0, "reward_max": 1.0}, True),
        ({"reward_min": 1.1}, False),
        ({"reward_max": 0.9}, False),
        ({"std_min": 0.5}, True),
        ({"std_min": 0.6}, False),
        ({"state": "trained"}, True),
        ({"state": "stale"}, False),
        ({"status": "no_answer"}, True),
        ({"status": "invalid_json"}, False),
        ({"predicate": "Next_To"}, True),
        ({"predicate": "next"}, False),
        ({"object": "CAFÉ"}, True),
        ({"object": "cafe"}, False),
        ({"image": "abab"}, True),
        ({"image": "ba"}, False),
        ({"group_id": "run-e0-r9"}, True),
        ({"group_id": "run-e0-r"}, False),
        ({"truncated": True}, True),
        ({"truncated": False}, False),
        ({"version": 4}, True),
        ({"version": 5}, False),
    ],
)
def test_a_filter_finds_what_fits(tmp_path: Path, wanted: dict[str, Any], fits: bool) -> None:
    write(tmp_path, [line(5, 9, **FULL)])
    found = RolloutIndex(tmp_path).page(RolloutFilter(**wanted)).lines
    assert [each.position for each in found] == [9] * fits


def test_a_group_without_rewards_is_in_no_bounds_and_comes_last(tmp_path: Path) -> None:
    write(tmp_path, [line(0, 0, state="dead", file=None), line(0, 1, mean=1.0, std=0.0)])
    assert pages(tmp_path, RolloutFilter(reward_min=-9.0)) == [1]
    for sort in ("highest", "lowest", "widest"):
        assert pages(tmp_path, RolloutFilter(), sort) == [1, 0]


def test_lines_that_cannot_be_read_are_passed_over_and_counted(tmp_path: Path) -> None:
    file = write(tmp_path, [line(0, 0)])
    good = file.read_bytes()
    later = good.replace(b'"schema":1', b'"schema":2')
    outside = good.replace(b"step-000000.rank0.jsonl", b"../../../etc/passwd")
    more = good.replace(b'"schema":1', b'"schema":1,"added_by_a_later_release":[1]')
    file.write_bytes(good + later + b"\n\xff{torn\n" + outside + more + good[:40])
    page = RolloutIndex(tmp_path).page()
    assert len(page.lines) == 2
    assert (page.passed_over, page.scanned) == (4, 6)


@pytest.mark.parametrize("sort", ["newest", "oldest"])
def test_damaged_lines_take_no_places_on_a_page(tmp_path: Path, sort: Sort) -> None:
    file = write(tmp_path, [line(step, step) for step in range(24)])
    lines = file.read_bytes().splitlines(keepends=True)
    for step in [0, 1, 2, 3, 5, 6, 17, 18, 20, 21, 22, 23]:
        lines[step] = lines[step].replace(b'"row":0', b'"row":"?"')
    file.write_bytes(b"".join(lines))
    good = [4, *range(7, 17), 19]
    assert pages(tmp_path, RolloutFilter(), sort, 3) == good[:: 1 if sort == "oldest" else -1]
    assert RolloutIndex(tmp_path).page(sort=sort, limit=24).passed_over == 12
    assert RolloutIndex(tmp_path).last_step == 19


def test_a_copy_of_an_index_is_none(tmp_path: Path) -> None:
    file = write(tmp_path, [line(0, 0)])
    for name in ("index.rank0 copy.jsonl", "index.rankX.jsonl", "index.rank.jsonl"):
        file.with_name(name).write_bytes(file.read_bytes())
    assert pages(tmp_path, RolloutFilter(), "oldest") == [0]


@pytest.mark.parametrize("place", [{"offset": 10**30}, {"length": 10**14}, {"offset": 90}])
def test_a_line_that_asks_for_more_than_its_file_has_is_damaged(
    tmp_path: Path, place: dict[str, int]
) -> None:
    damaged = line(3, 7, **{"length": 20} | place)
    write(tmp_path, [damaged])
    (tmp_path / "rollouts/step-000003.rank0.jsonl").write_bytes(b"x" * 99)
    with pytest.raises(InvalidInputError, match="the file ends before the group does"):
        RolloutIndex(tmp_path).read_record(damaged)
    assert RolloutIndex(tmp_path).page(RolloutFilter(text="a")).lines == []


def test_a_run_of_an_earlier_release_has_no_index(tmp_path: Path) -> None:
    assert not RolloutIndex(tmp_path).exists
    assert RolloutIndex(tmp_path).page().lines == []
    assert RolloutIndex(tmp_path).last_step is None
    assert read_events(tmp_path) == []


@pytest.mark.parametrize("cursor", ["", "x:1", "1:2:3", "inf:1:2:3", "nan:1:2:3", "1:2:3:4:5"])
def test_a_cursor_of_no_page_is_refused(run: Path, cursor: str) -> None:
    with pytest.raises(InvalidInputError, match="no cursor of a page of groups, newest first"):
        RolloutIndex(run).page(cursor=cursor)


def test_a_record_that_is_gone_is_said(tmp_path: Path) -> None:
    index = RolloutIndex(tmp_path)
    with pytest.raises(NotFoundError, match=r"run-e0-r7 of step 3 are gone.*keep_rollouts"):
        index.read_record(line(3, 7))
    with pytest.raises(NotFoundError, match="no answer of run-e0-r7 ever came: no image"):
        index.read_record(line(3, 7, file=None, state="dead", reason="no image"))


def test_events_of_another_schema_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_text(
        '{"schema":1,"time":1.5,"step":0,"kind":"started","text":"start 1"}\n'
        '{"schema":2,"when":"?"}\n{"torn\n'
        '{"schema":1,"time":2.5,"step":1,"kind":"of a later release","text":""}\n{"schema":1,"ti'
    )
    assert [event.kind for event in read_events(tmp_path)] == ["started", "of a later release"]
