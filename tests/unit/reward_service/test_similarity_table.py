"""Tables as files, and making them from vocabularies."""

import json
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reward_service.similarity import table as similarity_table
from reward_service.similarity.build import (
    read_aliases,
    read_vocabulary,
    table_of_aliases,
    table_of_similarity,
)
from reward_service.similarity.table import load_table, make_table, save_table
from scene_graph.similarity import TableSimilarity
from services.errors import InvalidInputError

VOCABULARIES = Path(__file__).parents[4] / "shared" / "data" / "vocab"
GOOD: dict[str, Any] = {
    "format": "sgg-similarity/1",
    "source": "by hand",
    "names": ["man", "person", "Traffic-Light"],
    "pairs": [["man", "person", 0.8]],
}


def written(path: Path, **changes: Any) -> Path:
    path.write_text(json.dumps({**GOOD, **changes}))
    return path


def test_names_are_normalised_and_pairs_have_one_order(tmp_path: Path) -> None:
    file = written(
        tmp_path / "t.json", pairs=[["traffic_light", "man", 0.25], ["Person", "man", 1]]
    )
    table = load_table(file)
    assert table.names == ("man", "person", "traffic light")
    assert table.pairs == {("man", "person"): 1.0, ("man", "traffic light"): 0.25}
    assert table.neighbours("Man") == [("person", 1.0), ("traffic light", 0.25)]
    assert table.source == "by hand"


@pytest.mark.parametrize(
    "pairs",
    [
        [["man", "person", 0.8], ["man", "person", 0.8]],
        [["man", "person", 0.8], ["Person", "man", 0.8]],
        [["man", "person", 0.8], ["man", "man", 1.0]],
        [["man", "person", 0.8], ["man", "traffic light", 0.0]],
    ],
)
def test_pair_that_says_nothing_new_changes_nothing(tmp_path: Path, pairs: list[Any]) -> None:
    plain = load_table(written(tmp_path / "plain.json"))
    table = load_table(written(tmp_path / "t.json", pairs=pairs))
    assert table.similarity().version == plain.similarity().version


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "sgg-similarity/2"}, "format: Input should be 'sgg-similarity/1'"),
        ({"pairs": [["man", "person", float("nan")]]}, "pairs.0.2"),
        ({"pairs": [["man", "person", float("inf")]]}, "pairs.0.2"),
        ({"pairs": [["man", "person", 0.8], ["man", "person", 1.001]]}, "pairs.1.2"),
        ({"pairs": [["man", "person", -0.1]]}, "pairs.0.2"),
        ({"pairs": [["man", "person", "0.8"]]}, "pairs.0.2"),
        ({"pairs": [["man", "person", True]]}, "pairs.0.2"),
        ({"pairs": [["man", "person", 10**400]]}, "pairs.0.2"),
        ({"pairs": [["man", "person"]]}, "pairs.0"),
        ({"pairs": {}}, "pairs: "),
        ({"names": ["man", 7]}, "names.1"),
        ({"names": ["man", "person", " _ "]}, "names: one is empty"),
        ({"pairs": [["man", "persn", 0.8]]}, "pairs.0: 'persn' is not in names"),
        (
            {"pairs": [["man", "person", 0.8], ["person", "man", 0.7]]},
            "pairs.1: 'man' and 'person' have 0.7 here and 0.8 before",
        ),
        ({"pairs": [["man", "Man", 0.8]]}, "pairs.0: 'man' has 0.8 with itself"),
        (
            {"names": ["man", "person", "Man"]},
            "names: 'man', 'Man' are one name after normalising, but have different pairs",
        ),
        ({"extra": 1}, "extra"),
        ({"names": [f"n{i}" for i in range(8193)]}, "8193 of them, over the limit of 8192"),
    ],
)
def test_bad_table_is_refused_with_the_place(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInputError) as caught:
        load_table(written(tmp_path / "t.json", **changes))
    assert caught.value.message.startswith("similarity table t.json: ")
    assert message in caught.value.message


def test_two_spellings_with_the_same_pairs_are_one_name(tmp_path: Path) -> None:
    pairs = [["t-shirt", "man", 0.5], ["man", "T Shirt", 0.5]]
    file = written(tmp_path / "t.json", names=["man", "t-shirt", "T Shirt"], pairs=pairs)
    assert load_table(file).names == ("man", "t shirt")


@pytest.mark.parametrize(
    "data", [b"", b"[" * 100_000, b'{"names": [', b"\xff\xfe", b"[1]", b"null"]
)
def test_file_that_is_no_table_is_refused(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "t.json"
    file.write_bytes(data)
    with pytest.raises(InvalidInputError, match=r"similarity table t\.json: "):
        load_table(file)


def test_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.json", tmp_path):
        with pytest.raises(InvalidInputError, match="similarity table"):
            load_table(path)


def test_file_over_the_limit_is_not_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = written(tmp_path / "t.json")
    monkeypatch.setattr(similarity_table, "MAX_BYTES", file.stat().st_size)
    table = load_table(file)
    monkeypatch.setattr(similarity_table, "MAX_BYTES", file.stat().st_size - 1)
    with pytest.raises(InvalidInputError, match="over the limit"):
        load_table(file)
    monkeypatch.setattr(similarity_table, "MAX_BYTES", 10)
    with pytest.raises(InvalidInputError, match="raise the threshold"):
        save_table(tmp_path / "other.json", table)
    assert [path.name for path in tmp_path.iterdir()] == ["t.json"]


def test_table_without_a_folder_to_lie_in_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="cannot be written"):
        save_table(tmp_path / "nowhere" / "t.json", make_table("", ["man"], []))


NAMES = ["man", "person", "café", "über horse"]
PAIRS = st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(NAMES), st.floats(0, 1)))


@given(PAIRS, st.randoms())
def test_saved_table_loads_as_itself_whatever_the_order(
    tmp_path_factory: pytest.TempPathFactory,
    pairs: list[tuple[str, str, float]],
    random: Random,
) -> None:
    folder = tmp_path_factory.mktemp("tables")
    consistent = list({frozenset(p[:2]): p for p in pairs if p[0] != p[1]}.values())
    table = make_table("test", NAMES, consistent)
    shuffled = random.sample(consistent, len(consistent))
    other = make_table("test", NAMES[::-1], [(b, a, value) for a, b, value in shuffled])
    save_table(folder / "a.json", table)
    save_table(folder / "b.json", other)
    assert (folder / "a.json").read_bytes() == (folder / "b.json").read_bytes()
    assert load_table(folder / "a.json") == table
    assert table.similarity().version == other.similarity().version


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("Man\n\n traffic_light \nman\n", ["man", "traffic light"]),
        ('["Man", "traffic-light"]', ["man", "traffic light"]),
        (
            '{"label_to_idx": {"man": 2, "hat": 1}, "predicate_to_idx": {"on": 1}, "other": {}}',
            ["man", "hat", "on"],
        ),
        (
            '{"thing_classes": ["man"], "stuff_classes": ["sky-other-merged"], '
            '"predicate_classes": ["on"]}',
            ["man", "sky other merged", "on"],
        ),
    ],
)
def test_vocabulary_is_read_in_each_format(tmp_path: Path, text: str, names: list[str]) -> None:
    file = tmp_path / "vocabulary"
    file.write_text(text)
    assert read_vocabulary(file) == names


@pytest.mark.parametrize(
    "text",
    ["", "\n", "man,mans\n", "[]", "[1]", "{", '{"a": 1}', '{"label_to_idx": 3}', "[" * 9**5],
)
def test_file_that_is_no_vocabulary_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "vocabulary"
    file.write_text(text)
    with pytest.raises(InvalidInputError, match="vocabulary"):
        read_vocabulary(file)


def test_aliases_join_a_group_and_not_a_chain(tmp_path: Path) -> None:
    file = tmp_path / "aliases.txt"
    file.write_text("near,next to\nnear,around, NEAR\nnext to,next_to a\npony,small horse\n\n,\n")
    table = table_of_aliases(["near", "on"], read_aliases(file), "test")
    assert table.names == ("around", "near", "next to", "on")
    assert table.pairs == {("around", "near"): 1.0, ("near", "next to"): 1.0}


def test_two_vocabulary_names_of_one_group_are_alike() -> None:
    table = table_of_aliases(["bike", "bicycle"], [["bike", "bicycle", "cycle"]], "test")
    assert table.neighbours("bike") == [("bicycle", 1.0), ("cycle", 1.0)]
    assert table.neighbours("bicycle") == [("bike", 1.0), ("cycle", 1.0)]


def test_table_of_a_similarity_leaves_out_what_is_below_the_threshold() -> None:
    given_ = TableSimilarity([], {("a", "b"): 0.5, ("b", "c"): 0.49, ("a", "c"): 0.9})
    table = table_of_similarity(["c", "a", "b", "a"], given_, 0.5, "test")
    assert table.names == ("a", "b", "c")
    assert table.pairs == {("a", "b"): 0.5, ("a", "c"): 0.9}


def test_table_of_a_similarity_refuses_too_many_names_before_it_asks() -> None:
    class Unasked:
        version = "none"

        def of_pairs(self, *_: object) -> np.ndarray[Any, np.dtype[np.float64]]:
            raise AssertionError("was asked")

    with pytest.raises(InvalidInputError, match="8193 of them"):
        table_of_similarity([f"n{i}" for i in range(8193)], Unasked(), 0.5, "test")


@pytest.mark.skipif(not VOCABULARIES.exists(), reason="the real vocabularies are not here")
def test_real_vocabularies_and_aliases_make_a_table() -> None:
    groups = [
        group
        for name in ("object_alias.txt", "predicate_alias.txt")
        for group in read_aliases(VOCABULARIES / name)
    ]
    vg150 = read_vocabulary(VOCABULARIES / "VG-SGG-dicts-with-attri.json")
    psg = read_vocabulary(VOCABULARIES / "psg_categories.json")
    assert (len(vg150), len(psg)) == (200, 189)
    table = table_of_aliases(vg150, groups, "test")
    assert ("next to", 1.0) in table.neighbours("near")
    assert set(vg150) <= set(table.names)
    # A chain over `near` would make `around` the same as PSG's `beside`.
    assert "around" not in dict(table_of_aliases(psg, groups, "test").neighbours("beside"))
