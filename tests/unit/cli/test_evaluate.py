"""`sgg-rl evaluate` against numbers worked out by hand."""

import io
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cli.main import main
from tests.graph_lines import HORSE, MAN, NEAR, RIDING, TREE, line, write

Command = Callable[..., int]

REFERENCE = [line(1), line(2), line(3), line(4, relationships=[])]
"""The same three objects each; the fourth image has nothing to find but them."""
PREDICTIONS = [
    line(1, num_tokens=50, text="all of it"),
    # The tree is missed, and `near` is between the wrong two.
    line(2, objects=[MAN, HORSE], relationships=[RIDING, NEAR | {"object": "man.1"}]),
    line(4, objects=[MAN], relationships=[], num_tokens=10),
]
"""Nothing for image 3."""


@pytest.fixture
def sgg_rl(monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run the command in this process; returns its exit code."""
    # It is for a whole process, and this one has other tests.
    monkeypatch.setattr("cli.main.quiet_libraries", lambda: None)

    def run(*words: object) -> int:
        monkeypatch.setattr(sys, "argv", ["sgg-rl", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0)

    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "reference.jsonl", REFERENCE)
    write(tmp_path / "predictions.jsonl", PREDICTIONS)
    return tmp_path


def evaluated(sgg_rl: Command, folder: Path, *more: object, name: str = "out") -> dict[str, Any]:
    words = ("--reference", folder / "reference.jsonl", "--split", "val", "-o", folder / name)
    assert sgg_rl("evaluate", folder / "predictions.jsonl", *words, *more) == 0
    metrics: dict[str, Any] = json.loads((folder / name / "metrics.json").read_text())
    return metrics


def test_json_is_what_metrics_json_has(
    sgg_rl: Command, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = evaluated(sgg_rl, folder, "--json")
    assert json.loads(capsys.readouterr().out) == found
    second = evaluated(sgg_rl, folder, "--json", name="again")
    assert second["protocols"] == found["protocols"]
    capsys.readouterr()
    compare = ("--compare", folder / "out", folder / "again", "-o", folder / "both", "--json")
    assert sgg_rl("evaluate", *compare) == 0
    compared = json.loads(capsys.readouterr().out)
    assert compared == json.loads((folder / "both" / "comparison.json").read_text())
    assert {row["difference"] for row in compared["differences"]} <= {0.0, None}


def test_numbers_are_those_worked_out_by_hand(sgg_rl: Command, folder: Path) -> None:
    found = evaluated(sgg_rl, folder)
    strict, sgb, r1 = (found["protocols"][name] for name in ("strict", "sgb", "r1-sgg"))
    # Image 1 has 2 of 2, image 2 has 1 of 2 with 2 predicted, image 3 has nothing: 0.
    assert strict["num_images"] == 3
    assert strict["recall@20"] == pytest.approx(1.5 / 3)
    assert strict["triplet_precision"] == pytest.approx(1.5 / 3)
    assert strict["triplet_f1"] == pytest.approx(1.5 / 3)
    # riding is found in 2 of 3, near in 1 of 3.
    assert strict["mean_recall@100"] == pytest.approx((2 / 3 + 1 / 3) / 2)
    # Image 3 is left out.
    assert sgb["num_images"] == 2
    assert sgb["recall@50"] == pytest.approx((1 + 1 / 2) / 2)
    assert sgb["mean_recall@50"] == pytest.approx((1 + 1 / 2) / 2)
    assert r1["ng_recall"] == pytest.approx(1.5 / 3)
    assert r1["ng_recall_pooled"] == pytest.approx(3 / 6)
    objects = found["objects"]
    assert objects["recall"] == pytest.approx((1 + 2 / 3 + 0 + 1 / 3) / 4)
    assert objects["precision"] == pytest.approx(3 / 4)
    assert objects["f1"] == pytest.approx((1 + 4 / 5 + 0 + 2 / 4) / 4)
    assert objects["mean_iou"] == pytest.approx(1)
    # All boxes are right: men reach recall 3/4, horses 2/4, trees 1/4.
    assert objects["ap50"] == pytest.approx((3 / 4 + 2 / 4 + 1 / 4) / 3)
    # Of COCO's 101 recall levels these are 76, 51 and 26.
    assert objects["coco_ap50"] == pytest.approx((76 + 51 + 26) / 303)
    answers = found["answers"]
    assert answers["failure_rate"] == pytest.approx(1 / 4)
    assert answers["unconstrained_failure_rate"] is None  # nobody says how they were decoded
    assert answers["relations_per_image"] == pytest.approx(4 / 4)
    assert answers["reference_objects_per_image"] == pytest.approx(12 / 4)
    assert answers["tokens_per_image"] == pytest.approx(60 / 2)
    assert found["failures"] == {"no_prediction": 1}
    assert found["num_images"] == 4
    low, high = found["intervals"]["strict"]["recall@20"]
    assert low < strict["recall@20"] < high


def test_objects_alone_by_hand(sgg_rl: Command, folder: Path) -> None:
    graphs = evaluated(sgg_rl, folder)
    # A reference without any relation will do.
    write(folder / "reference.jsonl", [row | {"relationships": []} for row in REFERENCE])
    found = evaluated(sgg_rl, folder, "--task", "det", name="det")
    assert found["task"] == "det"
    assert found["objects"] == graphs["objects"]  # worked out above
    assert found["protocols"] == found["groups"] == {}
    assert found["predicates"] == []
    assert not [name for name in found["answers"] if "relations" in name]
    assert found["answers"]["objects_per_image"] == pytest.approx(6 / 4)
    images = [json.loads(row) for row in (folder / "det/images.jsonl").open()]
    assert all(i["recall"] is i["f1"] is None for i in images)
    assert not any(i["predicted"]["relations"] for i in images)
    html = (folder / "det/report.html").read_text()
    assert "Triplets," not in html
    assert 'id="chart-relations"' not in html
    assert "The task is <b>det</b>" in html


def test_triplets_of_names_by_hand(sgg_rl: Command, folder: Path, capfd: Any) -> None:
    man, other, horse, tree = ({"id": f"{n}"} for n in ("man.1", "man.5", "horse.2", "tree.3"))
    ridden = RIDING | {"subject": "man.5"}
    write(
        folder / "predictions.jsonl",
        [
            # The numbers are others than the reference's, and the tree has no triplet.
            line(1, objects=[other, horse, tree], relationships=[ridden]),
            # Two men ride: only one does in the reference. A box counts for nothing.
            line(
                2,
                objects=[man, other, MAN | {"id": "tree.3"}, horse],
                relationships=[RIDING, ridden, NEAR],
            ),
            # The wrong direction.
            line(3, objects=[horse, tree], relationships=[NEAR | {"subject": "tree.3"}]),
        ],
    )
    (folder / "predictions.settings.json").write_text('{"task": "cls"}')
    found = evaluated(sgg_rl, folder)
    printed = capfd.readouterr().out
    assert (found["task"], found["objects"]) == ("cls", {})
    assert list(found["protocols"]) == ["strict"]
    assert found["protocols"]["strict"] == {
        "num_images": 3,
        "triplet_recall": pytest.approx((1 / 2 + 1 + 0) / 3),
        "triplet_precision": pytest.approx((1 + 2 / 3 + 0) / 3),
        "triplet_f1": pytest.approx((2 / 3 + 4 / 5 + 0) / 3),
        # riding is found in 2 of 3, near in 1 of 3.
        "mean_recall": pytest.approx((2 / 3 + 1 / 3) / 2),
    }
    assert {r["predicate"]: r["recall"]["strict"] for r in found["predicates"]} == {
        "riding": pytest.approx(2 / 3),
        "near": pytest.approx(1 / 3),
    }
    assert not [name for name in found["answers"] if "objects" in name]
    assert "object" not in printed
    assert "triplet recall" in printed
    images = [json.loads(row) for row in (folder / "out/images.jsonl").open()]
    assert [i["recall"] for i in images] == [0.5, 1.0, 0.0, None]
    assert images[0]["predicted"]["objects"][0]["bbox"] is None
    assert images[0]["reference"]["objects"][0]["bbox"] == MAN["bbox"]
    html = (folder / "out/report.html").read_text()
    assert "Triplets, of names" in html
    assert 'id="chart-objects"' not in html


def test_evaluations_of_one_task_are_compared(sgg_rl: Command, folder: Path, capfd: Any) -> None:
    for task in ("sgg", "det", "cls"):
        evaluated(sgg_rl, folder, "--task", task, name=task)
        again = folder / f"{task}-again"
        assert sgg_rl("evaluate", "--compare", folder / task, folder / task, "-o", again) == 0
        differences = json.loads((again / "comparison.json").read_text())["differences"]
        assert {d["difference"] for d in differences} <= {0, None}
        assert ("triplet_f1" in {d["metric"] for d in differences}) == (task != "det")
        assert ("ap50" in {d["metric"] for d in differences}) == (task != "cls")
    compared = sgg_rl("evaluate", "--compare", folder / "det", folder / "cls", "-o", folder / "x")
    assert compared == 1
    assert "of the task det" in capfd.readouterr().err


@pytest.mark.parametrize("task", ["sgg", "det", "cls"])
def test_lines_are_read_as_the_task_has_them(sgg_rl: Command, folder: Path, task: str) -> None:
    triplets_only = {"text": '{"relationships": []}', "box_space": "relative_1"}
    write(
        folder / "predictions.jsonl",
        [
            line(1, objects=[MAN, {"id": "horse.2"}]),
            {"image_id": 2, **triplets_only},
            {"image_id": 3, "text": '{"objects": []}', "box_space": "relative_1"},
        ],
    )
    found = evaluated(sgg_rl, folder, "--task", task)
    assert found["problem_counts"].get("broken_line", 0) == (task != "cls")
    wrong_form = {"sgg": 2, "det": 1, "cls": 1}[task]
    assert found["failures"]["schema_violation"] == wrong_form


def test_a_task_that_is_none_is_refused(sgg_rl: Command, folder: Path, capfd: Any) -> None:
    (folder / "predictions.settings.json").write_text('{"task": "detection"}')
    words = ("--reference", folder / "reference.jsonl", "--split", "val", "-o", folder / "out")
    assert sgg_rl("evaluate", folder / "predictions.jsonl", *words) == 1
    assert "task = 'detection'" in capfd.readouterr().err


def test_images_keep_what_was_found_and_missed(sgg_rl: Command, folder: Path) -> None:
    evaluated(sgg_rl, folder)
    images = [json.loads(row) for row in (folder / "out/images.jsonl").open()]
    assert [(i["image_id"], i["status"], i["recall"], i["f1"]) for i in images] == [
        ("1", "ok", 1.0, 1.0),
        ("2", "ok", 0.5, 0.5),
        ("3", "no_prediction", 0.0, 0.0),
        ("4", "ok", None, None),
    ]
    second = images[1]
    assert [r["verdict"] for r in second["predicted"]["relations"]] == ["hit", "hallucination"]
    assert second["predicted"]["relations"][1] == {
        "subject": 1,
        "predicate": "near",
        "object": 0,
        "verdict": "hallucination",
    }
    assert [o["verdict"] for o in second["reference"]["objects"]] == ["hit", "hit", "miss"]
    assert second["reference"]["objects"][2]["bbox"] == TREE["bbox"]
    assert images[0]["text"] == "all of it"


def test_training_split_gives_zero_shot_and_frequencies(sgg_rl: Command, folder: Path) -> None:
    train = write(folder / "train.jsonl", [line("t", relationships=[RIDING])] * 2)
    found = evaluated(sgg_rl, folder, "--train", train)
    # Only `horse near tree` is new: found in image 1 alone.
    assert found["protocols"]["strict"]["zero_shot_recall@20"] == pytest.approx(1 / 3)
    assert found["protocols"]["sgb"]["zero_shot_recall@20"] == pytest.approx(1 / 2)
    rows = [(r["predicate"], r["group"], r["num_training"]) for r in found["predicates"]]
    assert rows == [("riding", "head", 2), ("near", "body", 0)]
    assert found["predicates"][0]["recall"]["strict"] == pytest.approx(2 / 3)
    assert found["predicates"][1]["num_predicted"] == 2
    assert found["groups"]["body"]["strict"] == pytest.approx(1 / 3)


def test_predicates_are_grouped_in_thirds_by_frequency(sgg_rl: Command, folder: Path) -> None:
    names = ["on", "near", "near", "under", "under", "under", "has"]
    edges = [RIDING | {"predicate": name} for name in names]
    write(folder / "reference.jsonl", [line(1, relationships=edges), line(2)])
    rows = evaluated(sgg_rl, folder)["predicates"]
    assert [(r["predicate"], r["num_reference"], r["group"]) for r in rows] == [
        ("near", 3, "head"),
        ("under", 3, "head"),
        ("has", 1, "body"),
        ("on", 1, "body"),
        ("riding", 1, "tail"),
    ]


def test_names_are_mapped_and_the_steps_counted(sgg_rl: Command, folder: Path) -> None:
    objects = [MAN | {"id": "dude.1"}, HORSE | {"id": "stallion.2"}, TREE | {"id": "shrub.3"}]
    edges = [
        {"subject": "dude.1", "predicate": "rides", "object": "stallion.2"},
        {"subject": "stallion.2", "predicate": "adoring", "object": "shrub.3"},
    ]
    unknown = [{"subject": "stallion.2", "predicate": "near", "object": "shrub.3"}]
    rows = [line(i, objects=objects, relationships=r) for i, r in ((1, edges), (2, unknown))]
    write(folder / "predictions.jsonl", rows)
    aliases = folder / "aliases.txt"
    aliases.write_text("horse,stallion\nperson,dude\n")
    found = evaluated(sgg_rl, folder, "--vocabulary", "vg150", "--aliases", aliases)
    assert found["mapping"]["objects"] == pytest.approx(
        {"exact": 0, "alias": 2 / 3, "embedding": 0, "unmapped": 1 / 3}
    )
    assert found["mapping"]["predicates"]["alias"] == pytest.approx(1 / 3)  # the shipped `rides`
    # `dude` is what the file says, not the shipped `guy`: a person, and not the man.
    assert found["objects"]["recall"] == pytest.approx((1 / 3 + 1 / 3) / 4)
    # sgb cannot write a relation of `shrub`: image 2 has none left.
    assert found["protocols"]["sgb"]["num_images"] == 1
    assert found["inputs"]["vocabulary"] == "vg150"


def test_order_of_lines_does_not_matter(sgg_rl: Command, folder: Path) -> None:
    first = evaluated(sgg_rl, folder)
    rng = random.Random(0)
    write(folder / "predictions.jsonl", rng.sample(PREDICTIONS, 3))
    write(folder / "reference.jsonl", rng.sample(REFERENCE, 4))
    second = evaluated(sgg_rl, folder)
    for found in (first, second):
        del found["problems"]
    assert first == second


def test_table_names_split_protocols_and_problems_in_80_columns(
    sgg_rl: Command, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluated(sgg_rl, folder, "--vocabulary", "vg150")
    shown = capsys.readouterr().out
    assert max(map(len, shown.replace(str(folder), "").splitlines())) <= 80
    assert "\x1b" not in shown
    for words in ("on val: 4 images, 3 with relations", "strict, 3 images", "sgb, 2 images"):
        assert words in shown
    assert "R1-SGG, 7B" in shown
    assert "object recall, strict" in shown
    assert "COCO AP50" in shown
    assert "images without a graph: no_prediction 1" in shown
    assert "…" not in shown  # nothing is cut


def test_text_of_files_has_no_effect_on_the_terminal(
    sgg_rl: Command, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bell = "\x1b[31m\x07\u202e"
    rows = [line(1, status=f"odd{bell}"), line(2), line(f"else{bell}")]
    write(folder / "predictions.jsonl", rows)
    evaluated(sgg_rl, folder)
    shown = capsys.readouterr().out
    assert not set(bell[:1] + bell[-2:]) & set(shown)
    assert "odd\\x1b[31m" in shown


def test_a_terminal_without_utf_8_gets_codes(
    sgg_rl: Command, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [line(1, status="\u5931\u8d25"), line(2)]
    write(folder / "predictions.jsonl", rows)
    for words in ([], ["--vocabulary", "vg150"]):
        terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
        monkeypatch.setattr(sys, "stdout", terminal)
        evaluated(sgg_rl, folder, *words)
        terminal.flush()
        shown = terminal.buffer.getvalue().decode("ascii")
        assert r"\u5931\u8d25 1" in shown


def test_an_evaluation_of_an_earlier_version_can_be_compared(sgg_rl: Command, folder: Path) -> None:
    found = evaluated(sgg_rl, folder, name="a")
    found["objects"] = {n: v for n, v in found["objects"].items() if not n.startswith("coco")}
    (folder / "a/metrics.json").write_text(json.dumps(found))
    evaluated(sgg_rl, folder, name="b")
    pair = ("--compare", folder / "a", folder / "b", "-o", folder / "ab")
    assert sgg_rl("evaluate", *pair) == 0
    differences = json.loads((folder / "ab/comparison.json").read_text())["differences"]
    names = {d["metric"] for d in differences}
    assert "ap50" in names
    assert "coco_ap50" not in names


def test_comparison_finds_what_differs(
    sgg_rl: Command, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluated(sgg_rl, folder, name="a")
    write(folder / "predictions.jsonl", [line(1), line(2), line(3)])
    evaluated(sgg_rl, folder, name="b")
    pair = ("--compare", folder / "a", folder / "b", "-o", folder / "ab")
    assert sgg_rl("evaluate", *pair) == 0
    found = json.loads((folder / "ab/comparison.json").read_text())
    by_name = {(d["protocol"], d["metric"]): d for d in found["differences"]}
    recall = by_name["strict", "recall@100"]
    assert (recall["first"], recall["second"]) == pytest.approx((0.5, 1.0))
    assert recall["difference"] == pytest.approx(0.5)
    assert recall["interval"][0] <= 0.5 <= recall["interval"][1]
    assert by_name[None, "failure_rate"]["difference"] == 0
    assert found["predicates"][-1] == {
        "predicate": "near",
        "num_reference": 3,
        "first": pytest.approx(1 / 3),
        "second": 1.0,
    }
    assert (folder / "ab/report.html").is_file()
    assert "+50.00" in capsys.readouterr().out


def test_comparison_with_itself_finds_nothing(sgg_rl: Command, folder: Path) -> None:
    evaluated(sgg_rl, folder, name="a")
    assert sgg_rl("evaluate", "--compare", folder / "a", folder / "a", "-o", folder / "aa") == 0
    found = json.loads((folder / "aa/comparison.json").read_text())
    sampled = [d for d in found["differences"] if d["interval"]]
    assert sampled
    for difference in sampled:
        assert difference["difference"] == 0
        assert difference["interval"] == [0, 0]
        assert difference["p_value"] == 1
    assert found["num_left_out"] == [0, 0]


def test_comparison_is_of_the_common_images(sgg_rl: Command, folder: Path) -> None:
    evaluated(sgg_rl, folder, name="a")
    write(folder / "reference.jsonl", [REFERENCE[1], line(7), line(8)])
    evaluated(sgg_rl, folder, name="b")
    pair = ("evaluate", "-o", folder / "ab", "--compare", folder / "a", folder / "b")
    assert sgg_rl(*pair) == 0
    found = json.loads((folder / "ab/comparison.json").read_text())
    assert (found["num_images"], found["num_left_out"]) == (1, [3, 2])
    recall = next(d for d in found["differences"] if d["metric"] == "recall@20")
    assert (recall["first"], recall["second"]) == (0.5, 0.5)
    write(folder / "reference.jsonl", [line(1), line(2, objects=[MAN, HORSE, TREE, MAN])])
    evaluated(sgg_rl, folder, name="b")
    assert sgg_rl(*pair) == 1


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--split", "val"], 2, "give PREDICTIONS with --reference and --split"),
        (["--compare", "a", "b", "--split", "val"], 2, "--compare reads two finished"),
        (["--compare", "a", "b"], 1, "a is no finished evaluation: it has no metrics.json"),
        (["--compare", "a", "out"], 1, "out is compared: give --output another folder"),
    ],
)
def test_wrong_use_is_said(
    sgg_rl: Command, capsys: pytest.CaptureFixture[str], words: list[str], code: int, message: str
) -> None:
    assert sgg_rl("evaluate", "-o", "out", *words) == code
    assert message in capsys.readouterr().err


def test_a_file_in_the_place_of_the_output_folder_is_said_and_kept(
    sgg_rl: Command, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = folder / "reference.jsonl"
    before = reference.read_bytes()
    words = ["evaluate", folder / "predictions.jsonl", "--reference", reference, "--split", "val"]
    monkeypatch.setattr(sys, "argv", ["sgg-rl", *map(str, words), "-o", str(reference)])
    with pytest.raises(SystemExit, match=r"sgg-rl: .*reference\.jsonl: File exists"):
        main()
    assert reference.read_bytes() == before


def test_aliases_need_a_vocabulary(
    sgg_rl: Command, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--reference", folder / "reference.jsonl", "--split", "val", "-o", folder / "out")
    given = ("--aliases", folder / "aliases.txt")
    assert sgg_rl("evaluate", folder / "predictions.jsonl", *words, *given) == 2
    assert "need a --vocabulary" in capsys.readouterr().err


def test_a_damaged_evaluation_is_named(
    sgg_rl: Command, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluated(sgg_rl, folder, name="a")
    (folder / "a/images.jsonl").write_bytes(msgspec.json.encode({"image_id": 1}))
    assert sgg_rl("evaluate", "--compare", folder / "a", folder / "a", "-o", folder / "aa") == 1
    assert "cannot be read" in capsys.readouterr().err
