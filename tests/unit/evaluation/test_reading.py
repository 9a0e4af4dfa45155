"""What is wrong in predictions and references is named with its place, counted, and survived."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from evaluation.reading.predictions import Predictions, read_predictions
from evaluation.reading.problems import NUM_LISTED, Problems
from evaluation.reading.references import References, read_references
from services.errors import InvalidInputError
from tests.graph_lines import HORSE, MAN, NEAR, RIDING, TREE, line, write
from tests.raw_annotations import picture, put


def references(folder: Path, ids: str = "123456789") -> References:
    file = write(folder / "reference.jsonl", [line(image_id) for image_id in ids])
    return read_references(str(file), Problems())


def read(folder: Path, *rows: dict[str, Any] | str) -> tuple[Predictions, Problems]:
    problems = Problems()
    file = write(folder / "predictions.jsonl", rows)
    return read_predictions(file, references(folder), problems), problems


def test_every_fault_is_named_with_its_line(tmp_path: Path) -> None:
    empty, inverted = HORSE | {"bbox": [20, 40, 20, 95]}, TREE | {"bbox": [100, 0, 60, 60]}
    found, problems = read(
        tmp_path,
        line("1"),
        "not json\n",
        "\n",  # a blank line is no fault, and counts as a line
        line("2", width="wide"),
        line("3", objects=[MAN | {"bbox": [1, 2, 3]}]),
        {"image_id": "3", "width": 100, "height": 100, "objects": []},
        line("1"),
        line("cat"),
        line("4", objects=[MAN | {"bbox": [-5, 10, 50, 90]}, empty, inverted, TREE]),
        line("5", relationships=[RIDING | {"object": "zebra.1"}, NEAR]),
        line("6", width=50),
        line("7", status="invalid_json", truncated=True, objects=[], relationships=[]),
        '{"image_id": "8", "width": 10',
    )
    at = {(p.kind, p.line, p.image_id) for p in problems.listed}
    assert at == {
        ("broken_line", 2, None),
        ("broken_line", 4, None),
        ("broken_line", 5, None),
        ("broken_line", 6, None),
        ("duplicate_image", 7, "1"),
        ("unknown_image", 8, "cat"),
        ("box_outside", 9, "4"),
        ("empty_box", 9, "4"),
        ("duplicate_object", 9, "4"),
        ("dangling_relationship", 10, "5"),
        ("size_differs", 11, "6"),
        ("truncated_line", 13, None),
        *(("no_prediction", None, image_id) for image_id in "2389"),
    }
    assert problems.counts == Counter(p.kind for p in problems.listed)
    details = {(p.kind, p.line): p.detail for p in problems.listed}
    assert "$.width" in details["broken_line", 4]
    assert "bbox" in details["broken_line", 5]
    assert "`relationships`" in details["broken_line", 6]
    assert "zebra.1" in details["dangling_relationship", 10]
    assert all(p.file.endswith("predictions.jsonl") for p in problems.listed)
    assert list(found.images) == ["1", "4", "5", "6", "7"]


def test_faulty_graphs_stay_as_they_were_written(tmp_path: Path) -> None:
    outside, empty = MAN | {"bbox": [-5, 10, 50, 90]}, HORSE | {"bbox": [20, 40, 20, 95]}
    again = TREE | {"bbox": [0, 0, 9, 9]}
    found, _ = read(
        tmp_path,
        line("1", objects=[outside, empty, TREE, again]),
        line("2", relationships=[RIDING | {"object": "zebra.1"}, NEAR]),
        line("3", status="no_answer"),
    )
    first, second, failed = (found.images[i].graph for i in "123")
    assert first.names == ["man", "horse", "tree", "tree"]
    assert first.boxes[:8] == [-5, 10, 50, 90, 20, 40, 20, 95]
    assert (first.subjects, first.objects) == ([0, 1], [1, 2])  # the first tree, not the second
    assert (second.predicates, second.subjects) == (["near"], [1])
    assert (failed.names, found.images["3"].status) == ([], "no_answer")


def test_only_the_first_of_many_problems_are_kept(tmp_path: Path) -> None:
    _, problems = read(tmp_path, line("1"), *(["{\n"] * 100))
    assert problems.counts["broken_line"] == 100
    kept = [p.line for p in problems.listed if p.kind == "broken_line"]
    assert kept == list(range(2, NUM_LISTED + 2))


def test_names_are_normalised_and_ids_found_in_other_spellings(tmp_path: Path) -> None:
    light = {"id": "Traffic_Light.1", "bbox": [0, 0, 9, 9]}
    edges = [
        {"subject": "traffic light.1", "predicate": "ATTACHED-to", "object": "man.1"},
        {"subject": "Traffic_Light.1", "predicate": "near", "object": "MaN.1"},
    ]
    objects = [light, MAN, MAN | {"id": "mAN.1"}]
    found, problems = read(tmp_path, line("1", objects=objects, relationships=edges))
    graph = found.images["1"].graph
    assert graph.names == ["traffic light", "man", "man"]
    assert graph.predicates == ["attached to", "near"]
    assert (graph.subjects, graph.objects) == ([0, 0], [1, 1])
    assert "dangling_relationship" not in problems.counts


def test_scores_are_kept_where_there_are_any(tmp_path: Path) -> None:
    found, _ = read(
        tmp_path,
        line("1", objects=[MAN | {"score": 0.5}, HORSE], relationships=[RIDING | {"score": 0.25}]),
        line("2"),
    )
    assert found.images["1"].graph.scores == [0.5, 1.0]
    assert found.images["1"].graph.relation_scores == [0.25]
    assert found.images["2"].graph.scores == []


def test_relations_with_scores_come_sorted_by_them(tmp_path: Path) -> None:
    unsure = [MAN, HORSE, TREE | {"score": 0.5}]  # near: 0.9 * 0.5 with its tree
    edges = [RIDING | {"score": 0.4}, NEAR | {"score": 0.9}, RIDING | {"predicate": "on"}]
    found, _ = read(tmp_path, line("1", objects=unsure, relationships=edges))
    graph = found.images["1"].graph
    assert graph.predicates == ["on", "near", "riding"]
    assert graph.relation_scores == [1.0, 0.9, 0.4]
    assert (graph.subjects, graph.objects) == ([0, 1, 0], [1, 2, 1])


def test_text_is_read_as_the_rewards_read_it(tmp_path: Path) -> None:
    objects = [MAN | {"bbox": [100, 100, 500, 900]}, HORSE | {"bbox": [9, 9, 5, 5]}]
    answer = f"<answer>{json.dumps({'objects': objects, 'relationships': [RIDING]})}</answer>"
    found, problems = read(
        tmp_path,
        {"image_id": 1, "text": answer, "box_space": "relative_1000", "num_tokens": 70},
        {"image_id": 2, "text": '{"objects": [', "box_space": "relative_1000"},
        {"image_id": 3, "text": answer, "box_space": "furlongs"},
        {"image_id": 4, "text": answer},
    )
    assert found.images["1"].graph.boxes == [10, 10, 50, 90]
    assert found.images["1"].num_tokens == 70
    assert found.images["2"].status == "truncated"
    places = {(p.kind, p.line): p.detail for p in problems.listed}
    assert places["inverted_box", 1] == "1 in the answer"
    assert "furlongs" in places["broken_line", 3]
    assert "`box_space`" in places["broken_line", 4]


def test_answers_as_r1_sgg_writes_them(tmp_path: Path) -> None:
    folder = tmp_path / "answers"
    folder.mkdir()
    text = json.dumps({"objects": [MAN | {"bbox": [20, 20, 100, 180]}], "relationships": []})
    row = {"image_id": "1", "response": f"```json\n{text}\n```", "box_scale": [200.0, 200.0]}
    (folder / "1.json").write_text(json.dumps(row | {"gt_objects": "[]"}))
    (folder / "2.json").write_text("{")
    problems = Problems()
    found = read_predictions(folder, references(tmp_path), problems)
    assert found.images["1"].graph.boxes == [10, 10, 50, 90]
    broken = next(p for p in problems.listed if p.kind == "broken_file")
    assert broken.file.endswith("2.json")


def test_r1_sggs_folder_is_read_by_its_rule(tmp_path: Path) -> None:
    """Eight answers that its published code reads, each in another dress."""
    folder = tmp_path / "answers"
    folder.mkdir()
    graph = json.dumps({"objects": [MAN, HORSE], "relationships": [RIDING]})
    dresses = {
        "1": f"<answer>{graph}</answer>",
        "2": f"```json\n{graph}\n```",
        "3": f"{graph}\n```",
        "4": f"<answer>\n```json\n{graph}\n```\n</answer>",
        "5": f"json\n{graph}",
        "6": f"<answer>{graph}\n```</answer>",
        "7": f"<answer>{graph.replace('man.1', 'man.a')}</answer>",
        "8": f"<answer>{graph.replace('horse.2', 'horse.2.1')}</answer>",
    }
    for image_id, response in dresses.items():
        row = {"image_id": image_id, "response": response, "box_scale": [100.0, 100.0]}
        (folder / f"{image_id}.json").write_text(json.dumps(row), encoding="utf-8-sig")
    (folder / "9.json").mkdir()  # is no answer, and no reason to stop
    problems = Problems()
    found = read_predictions(folder, references(tmp_path), problems)
    assert list(found.images) == list(dresses)
    for image in found.images.values():
        assert image.graph.names == ["man", "horse"]
        assert image.graph.predicates == ["riding"]
    assert problems.counts == {"broken_file": 1, "no_prediction": 1}


@pytest.mark.parametrize("bom_in", ["predictions", "reference"])
def test_a_byte_order_mark_is_skipped(tmp_path: Path, bom_in: str) -> None:
    files = {name: tmp_path / f"{name}.jsonl" for name in ("predictions", "reference")}
    for name, file in files.items():
        write(file, [line("1"), line("2")])
        if name == bom_in:
            file.write_text(file.read_text(), encoding="utf-8-sig")
    problems = Problems()
    read_from = read_references(str(files["reference"]), problems)
    found = read_predictions(files["predictions"], read_from, problems)
    assert list(found.images) == list(read_from.images) == ["1", "2"]
    assert not problems.counts


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (json.dumps([line("1")]).encode(), "is a JSON list; JSONL is wanted, one object on each"),
        (json.dumps([line("1")], indent=1).encode("utf-8-sig"), "is a JSON list"),
        (json.dumps(line("1"), indent=1).encode(), "objects go over several lines"),
        (json.dumps(line("1")).encode("utf-16"), "is UTF-16 or no text: save it as UTF-8"),
        (json.dumps(line("1")).encode("utf-16-le"), "is UTF-16 or no text"),
        (
            json.dumps(line("1", status="\u9a91"), ensure_ascii=False).encode("gbk") + b"\n",
            "predictions.jsonl:1: broken_line: left out: not UTF-8: save the file as UTF-8",
        ),
    ],
)
def test_a_file_of_another_form_is_refused_in_one_line(
    tmp_path: Path, content: bytes, message: str
) -> None:
    file = tmp_path / "predictions.jsonl"
    file.write_bytes(content)
    with pytest.raises(InvalidInputError) as refused:
        read_predictions(file, references(tmp_path), Problems())
    assert message in refused.value.message
    assert "\n" not in refused.value.message


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le"])
def test_references_that_are_no_utf_8_are_refused(tmp_path: Path, encoding: str) -> None:
    file = tmp_path / "reference.jsonl"
    file.write_bytes(json.dumps(line("1")).encode(encoding))
    with pytest.raises(InvalidInputError, match="UTF-16 or UTF-32 text; save it as UTF-8"):
        read_references(str(file), Problems())


ROW = {key: value for key, value in line("1").items() if key not in ("width", "height")}


@pytest.mark.parametrize("name", ["r.jsonl", "r.json", "folder/r.jsonl"])
@pytest.mark.parametrize("first", range(6))
def test_rows_of_a_dataset_are_references_whichever_comes_first(
    tmp_path: Path, name: str, first: int
) -> None:
    """Line 1, of no picture, has the plainest form; each other has one that datasets have too."""
    (tmp_path / "folder").mkdir()
    file = tmp_path / name
    put(file.parent / "a.png", picture(100, 100))
    objects = {"id": [o["id"] for o in (MAN, HORSE, TREE)]}
    objects["bbox"] = [o["bbox"] for o in (MAN, HORSE, TREE)]
    rows = [
        line("0"),
        ROW | {"image_id": 1.0, "image": "a.png"},
        line("2", objects=json.dumps([MAN, HORSE, TREE]), relationships=json.dumps([RIDING, NEAR])),
        line("3", objects=objects),
        line("4", width="100", height=100.0),
        ROW | {"image_id": 5, "images": [{"path": "a.png"}]},
    ]
    rows = rows[first:] + rows[:first]
    put(file, rows) if file.suffix == ".json" else write(file, rows)
    problems = Problems()
    read_from = read_references(str(file.parent if "/" in name else file), problems)
    assert list(read_from.images) == list("012345")
    assert not problems.counts
    assert len({str(image.graph) for image in read_from.images.values()}) == 1
    assert read_from.images["1"].size == (100, 100)
    assert read_from.image_bytes("1") == read_from.image_bytes("5") == picture(100, 100)
    assert read_from.image_bytes("0") is None
    answers = write(tmp_path / "p.jsonl", [line(i) for i in ("0", "1", 2.0, 3, 4.0, "5")])
    assert len(read_predictions(answers, read_from, Problems()).images) == 6


@pytest.mark.parametrize("name", ["r.jsonl", "r.json"])
def test_references_that_cannot_be_read_are_counted_with_the_reason(
    tmp_path: Path, name: str
) -> None:
    rows = [line("1"), ROW, ROW | {"image": "gone.png"}, line("4", objects="[{"), line("")]
    problems = Problems()
    assert list(read_references(str(write(tmp_path / name, rows)), problems).images) == ["1"]
    assert problems.counts.total() == 4
    said = "; ".join(problem.detail for problem in problems.listed)
    for words in ("width and height are missing", "No such file", "objects is not", "image_id is"):
        assert words in said


def test_a_list_and_chats_in_a_jsonl_file_are_references(tmp_path: Path) -> None:
    graph = json.dumps({"objects": [MAN, HORSE], "relationships": [RIDING]})
    file = tmp_path / "r.jsonl"
    for text, image_id in (
        (json.dumps([line("7")], indent=1), "7"),
        (json.dumps({"id": "8", "width": 100, "height": 100, "answer": graph}), "8"),
    ):
        file.write_text(text)
        assert list(read_references(str(file), Problems()).images) == [image_id]


def test_a_folder_of_neither_is_no_predictions(tmp_path: Path) -> None:
    put(tmp_path / "photos/a.png", picture(100, 100))
    with pytest.raises(InvalidInputError, match=r"photos has neither predictions.jsonl.* nor .jso"):
        read_predictions(tmp_path / "photos", references(tmp_path), Problems())


def test_numbers_of_other_forms(tmp_path: Path) -> None:
    huge = MAN | {"bbox": [1e300, 1, 1e308, 3]}
    found, problems = read(
        tmp_path,
        line("1", width=100.0, height=1e2),
        line("2", objects=[huge, HORSE, TREE]),
        line("3", width=100.5),
        line("4", width=10**400),
        line("5", height=-1),
        line("6", objects=[MAN | {"score": 1e9}]),
        line("7", num_tokens=10**400),
        json.dumps(line("8", objects=[MAN | {"bbox": [1, 2, 3, "x"]}])).replace('"x"', "NaN")
        + "\n",
    )
    assert list(found.images) == ["1", "2"]
    assert (found.images["2"].graph.names, problems.counts["size_differs"]) == (
        ["horse", "tree"],
        0,
    )
    details = {(p.kind, p.line): p.detail for p in problems.listed}
    assert details["non_finite_box", 2] == "'man.1' is left out: its box is [1e+300, 1, 1e+308, 3]"
    assert "'man.1', which is no object" in details["dangling_relationship", 2]
    for number, words in enumerate(("$.width", "$.width", "$.height", "$.objects[0].score"), 3):
        assert words in details["broken_line", number]
    assert "$.num_tokens" in details["broken_line", 7]
    assert "NaN and Infinity are none" in details["broken_line", 8]


def test_a_reference_without_a_size_is_left_out(tmp_path: Path) -> None:
    problems = Problems()
    file = write(tmp_path / "r.jsonl", [line("1", width=0), line("2")])
    assert list(read_references(str(file), problems).images) == ["2"]
    assert problems.counts == {"broken_line": 1}


@pytest.mark.parametrize(
    ("written", "known", "reason"),
    [
        (139, "000000000139", "zero-padded?"),
        (" 139", "139", "with spaces around it?"),
        ("000000000139", "139", "zero-padded?"),
        ("000000000139.jpg", "000000000139", "with a file's extension?"),
        ("val/7.png", "7", "with a folder? with a file's extension?"),
        ("139.0", "000000000139", "a number with a fraction? zero-padded?"),
        ("COCO_val2014_000000000139", "139", "with a name before the number? zero-padded?"),
        ("train/a.jpg", "val/a.jpg", "with a folder?"),
        ("Scene-A", "scene-a", "in another case?"),
    ],
)
def test_ids_that_do_not_match_are_shown_side_by_side(
    tmp_path: Path, written: str | float, known: str, reason: str
) -> None:
    reference = write(tmp_path / "reference.jsonl", [line("other"), line(known)])
    file = write(tmp_path / "predictions.jsonl", [line("x") | {"image_id": written}])
    with pytest.raises(InvalidInputError) as refused:
        read_predictions(file, read_references(str(reference), Problems()), Problems())
    hint = f"the predictions have {str(written)!r}, the reference has {known!r}: {reason} Write"
    assert hint in refused.value.message


def test_ids_of_nothing_alike_are_shown_with_examples(tmp_path: Path) -> None:
    _, problems = read(tmp_path, line("1"), line("cat"))
    (unknown,) = (p for p in problems.listed if p.kind == "unknown_image")
    assert unknown.detail == (
        "ignored: the predictions have 'cat', the reference has ids such as '1', '2'"
    )


def test_settings_beside_the_predictions_are_read(tmp_path: Path) -> None:
    file = tmp_path / "predictions.settings.json"
    file.write_text(json.dumps({"model": "toy"}))
    assert read(tmp_path, line("1"))[0].settings == {"model": "toy"}
    file.write_text("[")
    found, problems = read(tmp_path, line("1"))
    assert (found.settings, problems.counts["broken_settings"]) == ({}, 1)


def test_text_is_read_in_the_notation_of_the_settings_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "predictions.settings.json"
    lines = "objects\nA man 100 100 500 900\nrelationships\nend"
    row = {"image_id": 1, "text": lines, "box_space": "relative_1000"}
    assert read(tmp_path, row)[0].images["1"].status == "no_answer"
    file.write_text('{"notation": "compact"}')
    assert read(tmp_path, row)[0].images["1"].graph.boxes == [10, 10, 50, 90]
    file.write_text('{"notation": "lines"}')
    with pytest.raises(InvalidInputError, match=r"notation = 'lines': it is one of .*compact"):
        read(tmp_path, row)


def test_references_are_sorted_by_id_and_their_faults_named(tmp_path: Path) -> None:
    empty = line("a", objects=[], relationships=[])
    file = write(tmp_path / "r.jsonl", [line("10"), line(9), line("b"), empty, line("9"), "{"])
    problems = Problems()
    read_from = read_references(str(file), problems)
    assert list(read_from.images) == ["9", "10", "a", "b"]
    assert {(p.kind, p.line) for p in problems.listed} == {
        ("empty_reference", 4),
        ("duplicate_image", 5),
        ("truncated_line", 6),
    }


def test_what_cannot_be_evaluated_is_an_error_that_says_where_to_look(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="no image with a relation"):
        read_references(str(write(tmp_path / "r.jsonl", [line(1, relationships=[])])), Problems())
    with pytest.raises(InvalidInputError, match=r"predictions.jsonl:1: broken_line"):
        read(tmp_path, "nonsense\n")
    with pytest.raises(InvalidInputError, match="no prediction for any image"):
        read(tmp_path, line("elsewhere"))
    with pytest.raises(InvalidInputError, match="cannot be read"):
        read_predictions(tmp_path / "gone.jsonl", references(tmp_path), Problems())
    with pytest.raises(InvalidInputError, match="is not a dataset"):
        read_references(str(tmp_path / "gone.jsonl"), Problems())
