import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scene_data import json_stream
from scene_data.json_stream import read_members, stream_items
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
    assert read_members(file, without="data") == {"before": items, "after": [1]}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "the end of the file"),
        ('{"a": 1}', r"\[ was expected, not {"),
        ('[{"a": 1}, {"a"', "after character 11"),
        ("[1, 2", r", or \] was expected"),
        ("[1, 2] []", "more after the end"),
        ("[1 2]", "was expected, not 2"),
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
    with pytest.raises(InvalidInputError, match="no list 'data'"):
        list(stream_items(file, "data"))
    with pytest.raises(InvalidInputError, match="cannot read"):
        list(stream_items(tmp_path / "none.json"))
