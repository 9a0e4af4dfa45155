"""A large dataset: some rows are read when it is opened, and the others when they are used."""

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from evaluation.reading.problems import Problems
from evaluation.reading.references import read_dataset
from scene_data import dataset
from scene_data.dataset import UnusableRowError, open_dataset
from scene_data.reading.sources import open_rows
from scene_data.writing import parquet_writer
from services.errors import InvalidInputError
from tests.raw_annotations import picture, put

OBJECTS = [{"id": "man.1", "bbox": [1, 2, 30, 40]}, {"id": "hat.2", "bbox": [5, 6, 20, 21]}]
EDGES = [{"subject": "hat.2", "predicate": "on", "object": "man.1"}]
TWICE = [OBJECTS[0], OBJECTS[0]]
DANGLING = [{"subject": "hat.2", "predicate": "on", "object": "horse.1"}]
NUM = 600
LAYOUTS = ["parquet", "lists.parquet", "jsonl", "texts.jsonl", "saved"]


@pytest.fixture(autouse=True)
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some rows are 40 of 600: two neighbours in each of 20 places."""
    monkeypatch.setattr(dataset, "MAX_READ", 40)
    monkeypatch.setattr(dataset, "_NEIGHBOURS", 2)


def unread() -> list[int]:
    """Rows that are not read when 600 are opened."""
    return sorted(set(range(NUM)) - set(dataset._spread(NUM).tolist()))


def write(folder: Path, layout: str, changes: dict[int, dict[str, Any]]) -> Path:
    """Six hundred rows, these with changes."""
    rows: list[dict[str, Any]] = [
        {
            "image_id": f"id-{number}",
            "image": {"bytes": picture(), "path": None},
            "width": 64,
            "height": 48,
            "objects": OBJECTS,
            "relationships": EDGES,
            **changes.get(number, {}),
        }
        for number in range(NUM)
    ]
    path = folder / f"train.{layout}"
    if layout == "parquet":
        with parquet_writer(path) as add:
            for row in rows:
                add(row)
    elif layout.endswith("jsonl"):
        put(folder / "a.jpg", picture())
        dumps = json.dumps if layout.startswith("texts") else list
        lists = [{key: dumps(row[key]) for key in ("objects", "relationships")} for row in rows]
        lines = [
            json.dumps({**row, "image": "a.jpg", **texts})
            for row, texts in zip(rows, lists, strict=True)
        ]
        path.write_text("\n".join(lines))
    else:
        table = datasets.Dataset.from_list(rows)
        if layout == "saved":
            table.save_to_disk(path)
        else:
            table.to_parquet(path, batch_size=70)
    return path


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_row_that_was_not_read_is_refused_when_it_is_used(
    tmp_path: Path, layout: str, caplog: pytest.LogCaptureFixture
) -> None:
    read, twice, dangling = 0, *unread()[3:5]
    changes: dict[int, dict[str, Any]] = {
        read: {"objects": TWICE},
        twice: {"objects": TWICE},
        dangling: {"relationships": DANGLING},
    }
    path = write(tmp_path, layout, changes)
    opened = open_dataset(path, task="sgg")
    assert (len(opened), opened.check.num_read, opened.check.num_broken) == (NUM - 1, 40, 1)
    assert "skipped 1 of 600 rows" in caplog.text
    for index, reason in ((twice - 1, "comes twice"), (dangling - 1, "no relationship, and sgg")):
        with pytest.raises(UnusableRowError, match=rf"\(image id-{index + 1}\): .*{reason}"):
            opened[index]
    caplog.clear()
    ids = [sample.image_id for sample in opened]
    assert ids == [f"id-{n}" for n in range(NUM) if n not in changes]
    assert [f"(image id-{n})" in caplog.text for n in (twice, dangling)] == [True, True]
    assert len(open_dataset(path, task="det")) == NUM - 1
    problems = Problems()
    assert len(read_dataset(str(path), problems).images) == NUM - 2
    assert problems.counts["broken_row"] == 2


@pytest.mark.parametrize("layout", LAYOUTS)
def test_empty_lists_show_without_reading_rows(
    tmp_path: Path, layout: str, caplog: pytest.LogCaptureFixture
) -> None:
    bare, empty, nothing = unread()[:3]
    changes: dict[int, dict[str, Any]] = {
        bare: {"relationships": []},
        empty: {"objects": [], "relationships": []},
        nothing: {"objects": []},
    }
    path = write(tmp_path, layout, changes)
    opened = open_dataset(path, task="sgg")
    assert [s.image_id for s in opened] == [f"id-{n}" for n in range(NUM) if n not in changes]
    assert (opened.check.num_unrelated, opened.check.num_broken) == (2, 1)
    assert f"(image id-{nothing}): no object with a box" in caplog.text
    assert (len(open_dataset(path)), open_dataset(path).check.num_broken) == (NUM - 2, 2)
    rows = open_rows(str(path))
    assert np.flatnonzero(rows.empty("relationships")).tolist() == [bare, empty]
    assert np.flatnonzero(rows.empty("objects")).tolist() == [empty, nothing]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_too_many_broken_rows_are_refused_in_the_same_words(
    tmp_path: Path, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = dataset._spread(NUM)[:7].tolist()
    for name, broken in (("seen", seen), ("empty", unread()[:7])):
        (tmp_path / name).mkdir()
        change = {"objects": TWICE if name == "seen" else []}
        path = write(tmp_path / name, layout, dict.fromkeys(broken, change))
        messages = []
        for most in (40, NUM):
            monkeypatch.setattr(dataset, "MAX_READ", most)
            with pytest.raises(InvalidInputError, match=f"{len(broken)} of 600 rows are") as found:
                open_dataset(path)
            messages.append(found.value.message)
        assert messages[0] == messages[1]
        monkeypatch.setattr(dataset, "MAX_READ", 40)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_that_are_all_good_are_the_same_however_many_are_read(
    tmp_path: Path, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, layout, {})
    some = open_dataset(path, task="sgg")
    monkeypatch.setattr(dataset, "MAX_READ", NUM)
    every = open_dataset(path, task="sgg")
    assert (some.check.num_read, every.check.num_read) == (40, NUM)
    assert some.check.usable.tolist() == every.check.usable.tolist()
    assert some.digest() == every.digest()
    assert list(some) == list(every)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_chosen_rows_are_those_of_all(tmp_path: Path, layout: str) -> None:
    rows = open_rows(str(write(tmp_path, layout, {5: {"objects": []}})))
    every = list(rows.annotations())
    chosen = np.array([0, 1, 5, 69, 70, 100, 599])
    assert list(rows.annotations(chosen)) == [every[index] for index in chosen]
    assert list(rows.annotations(chosen[:0])) == []


def test_what_no_sample_shows_ends_nothing(tmp_path: Path) -> None:
    path = write(tmp_path, "jsonl", {index: {"objects": TWICE} for index in unread()[:300]})
    opened = open_dataset(path)
    assert (len(opened), opened.check.num_read) == (NUM, 40)
    assert len(list(opened)) == NUM - 300
