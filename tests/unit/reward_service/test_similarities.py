"""What a request can reach by the name of a similarity, and what it cannot."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from reward_service.similarity.registry import Similarities
from reward_service.similarity.table import make_table, save_table
from scene_graph.similarity import Similarity
from services.errors import InvalidInputError, SettingsError


def put_table(path: Path, value: float) -> None:
    save_table(path, make_table("test", ["man", "person"], [("man", "person", value)]))


def man_person(similarity: Similarity) -> float:
    return float(similarity.of_pairs(["man", "person"], np.array([0]), np.array([1]))[0])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "tables"
    folder.mkdir()
    put_table(folder / "vg.json", 0.8)
    return folder


def test_exact_is_always_there() -> None:
    assert man_person(Similarities().get("exact")) == 0


def test_table_is_found_by_its_file_name(folder: Path) -> None:
    table = Similarities(folder).get("table:vg.json")
    assert man_person(table) == 0.8
    assert table.version.startswith("table:")


@pytest.mark.parametrize(
    "name",
    [
        "table:nowhere.json",
        "table:",
        "table:.",
        "table:..",
        "table:../vg.json",
        "table:../outside.json",
        "table:./vg.json",
        "table:sub/inner.json",
        "table:sub",
        "table:.hidden.json",
        "table:notes.txt",
        "table:link.json",
        "table:loop.json",
        "table:dead.json",
        "table:folder.json",
        "table:pipe.json",
        "table:*.json",
        "table:vg.json\0",
        "table:\ud800.json",
        "table:" + "x" * 10_000 + ".json",
    ],
)
def test_no_other_file_is_reached(folder: Path, name: str) -> None:
    put_table(folder.parent / "outside.json", 0.5)
    put_table(folder / ".hidden.json", 0.5)
    put_table(folder / "notes.txt", 0.5)
    (folder / "sub").mkdir()
    put_table(folder / "sub" / "inner.json", 0.5)
    (folder / "folder.json").mkdir()
    (folder / "link.json").symlink_to(folder.parent / "outside.json")
    (folder / "loop.json").symlink_to("loop.json")
    (folder / "dead.json").symlink_to("gone.json")
    os.mkfifo(folder / "pipe.json")
    with pytest.raises(InvalidInputError) as caught:
        Similarities(folder).get(name)
    assert caught.value.message.endswith("there are: table:vg.json")
    assert len(caught.value.message) < 300


def test_full_path_of_a_table_is_no_name(folder: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"there are: table:vg\.json"):
        Similarities(folder).get(f"table:{folder / 'vg.json'}")


def test_link_within_the_folder_is_followed(folder: Path) -> None:
    (folder / "current.json").symlink_to("vg.json")
    assert man_person(Similarities(folder).get("table:current.json")) == 0.8


@pytest.mark.parametrize("name", ["", "Exact", "exact:", "spacy:en", "vg.json", "\ud800" * 1000])
def test_unknown_kind_is_refused_with_those_there_are(folder: Path, name: str) -> None:
    with pytest.raises(InvalidInputError, match="exact, table:FILE and embedding:MODEL") as caught:
        Similarities(folder).get(name)
    assert len(caught.value.message) < 1000
    json.dumps(caught.value.message).encode()


def test_without_a_folder_the_message_names_the_setting() -> None:
    with pytest.raises(InvalidInputError, match=r"\[reward\] similarity_folder"):
        Similarities().get("table:vg.json")


def test_folder_that_is_not_there_fails_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"\[reward\] similarity_folder"):
        Similarities(tmp_path / "nowhere")


def test_table_is_loaded_once_and_again_when_its_file_changes(folder: Path) -> None:
    similarities = Similarities(folder)
    first = similarities.get("table:vg.json")
    assert similarities.get("table:vg.json") is first
    put_table(folder / "vg.json", 0.7)
    second = similarities.get("table:vg.json")
    assert man_person(second) == 0.7
    assert second.version != first.version
    (folder / "vg.json").unlink()
    with pytest.raises(InvalidInputError, match="there are: none"):
        similarities.get("table:vg.json")


def test_broken_table_says_what_is_wrong_until_it_is_mended(folder: Path) -> None:
    similarities = Similarities(folder)
    (folder / "bad.json").write_text("{}")
    for _ in range(2):
        with pytest.raises(InvalidInputError, match=r"similarity table bad\.json: format"):
            similarities.get("table:bad.json")
    put_table(folder / "bad.json", 0.6)
    assert man_person(similarities.get("table:bad.json")) == 0.6


def test_model_that_the_operator_did_not_allow_is_refused_by_name(tmp_path: Path) -> None:
    similarities = Similarities(embedding_models=["one/allowed"])
    for name in ("embedding:", "embedding:other", f"embedding:{tmp_path}"):
        with pytest.raises(InvalidInputError, match="allowed are: embedding:one/allowed"):
            similarities.get(name)
    with pytest.raises(InvalidInputError, match=r"\[reward\] embedding_models"):
        Similarities().get("embedding:one/allowed")
