import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scene_data.reading import json_stream
from scene_data.reading.json_stream import (
    member_kinds,
    read_members,
    stream_items,
    stream_members,
    stream_values,
)
from services.errors import InvalidInputError

VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@pytest.fixture(autouse=True)
def _small_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "CHUNK", 3)  # every value is cut somewhere


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(items=st.lists(VALUES), indent=st.sampled_from([None, 2]))
def test_items_are_those_of_the_whole_file(tmp_path: Path, items: list[Any], indent: Any) -> None:
    file = tmp_path / "list.json"
    file.write_text(json.dumps(items, indent=indent))
    assert list(stream_items(file)) == items
    file.write_text(json.dumps({"before": items, "data": items, "after": [1]}, indent=indent))
    assert list(stream_items(file, "data")) == items
    assert read_members(file, without=("data",)) == {"before": items, "after": [1]}
    assert dict(member_kinds(file)) == {"before": "[", "data": "[", "after": "["}
    rows = [{"value": item} for item in items]
    file.write_text("\n".join(json.dumps(row, indent=indent) for row in rows))
    assert list(stream_values(file)) == rows
    file.write_text(json.dumps(rows, indent=indent))
    assert list(stream_values(file)) == rows


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(members=st.dictionaries(st.text(), VALUES))
def test_members_are_those_of_the_whole_file(tmp_path: Path, members: dict[str, Any]) -> None:
    file = tmp_path / "object.json"
    file.write_text(json.dumps(members))
    assert dict(stream_members(file)) == members
    file.write_text(json.dumps({"before": 1.5, "data": members, "after": members}))
    assert dict(stream_members(file, "data")) == members


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "the end of the file"),
        ('{"a": 1}', "found an object after character 0; a list is wanted there"),
        ('[{"a": 1}, {"a"', "after character 11"),
        ("[1, 2", r"found the end of the file, and , or \] is wanted"),
        ("[1, 2] []", r"found \[ after the end"),
        ("[1 2]", r"found 2, and , or \] is wanted"),
        ("[" * 100_000, "after character"),
    ],
)
def test_what_is_no_list_is_refused_with_its_place(tmp_path: Path, text: str, reason: str) -> None:
    file = tmp_path / "bad.json"
    file.write_text(text)
    with pytest.raises(InvalidInputError, match=reason) as found:
        list(stream_items(file))
    assert str(file) in found.value.message


def test_bytes_that_are_no_text_and_missing_members_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "bad.json"
    file.write_bytes(b'["\xff"]')
    with pytest.raises(InvalidInputError, match="utf-8"):
        list(stream_items(file))
    file.write_text("{}")
    with pytest.raises(InvalidInputError, match="its members are none; 'data' is wanted"):
        list(stream_items(file, "data"))
    with pytest.raises(InvalidInputError, match="cannot read"):
        list(stream_items(tmp_path / "none.json"))
