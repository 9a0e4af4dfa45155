"""`sgg-rl score` as a person meets it: what is printed, what is refused, and the exit codes."""

import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cli.main import main
from reward_service import terms
from reward_service.scoring import make_scorer
from services.schemas.rewards import RewardGroup

ROOT = Path(__file__).parents[3]
MAN = {"id": "man.1", "bbox": [0, 0, 500, 1000]}
HORSE = {"id": "horse.1", "bbox": [500, 0, 1000, 1000]}
RIDING = {"subject": "man.1", "predicate": "riding", "object": "horse.1"}
REFERENCE = {
    "objects": [
        {"id": "man.1", "bbox": [0, 0, 50, 100]},
        {"id": "horse.1", "bbox": [50, 0, 100, 100]},
    ],
    "relationships": [RIDING],
}
GHOST = {"subject": "ghost.1", "predicate": "near", "object": "man.1"}


RUBRIC = {  # of our own, so that no other rubric's weights are tested here
    "terms": {
        "format": 1,
        "node_category": 1,
        "node_box": 1,
        "object_precision": 2,
        "triplet_f1": 5,
    }
}


def answer(objects: list[Any], relationships: list[Any]) -> str:
    return f"<answer>{json.dumps({'objects': objects, 'relationships': relationships})}</answer>"


GOOD = answer([MAN, HORSE], [RIDING])
FAULTY = answer(
    [MAN, HORSE | {"id": "dog.1"}, MAN],
    [RIDING | {"predicate": "near", "object": "dog.1"}, GHOST],
)
CUT = GOOD[:60]


def row(completion: str, **more: Any) -> dict[str, Any]:
    return {"completion": completion, "reference": REFERENCE, "image_size": [100, 100]} | more


@dataclass
class Done:
    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return [line.strip() for line in self.out.splitlines()]


Sgg = Callable[..., Done]


@pytest.fixture
def score(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Sgg:
    """Runs the command, with `RUBRIC` if none is given, on 80 columns that are no terminal."""
    # It is for a whole process, and this one has other tests.
    monkeypatch.setattr("cli.main.quiet_libraries", lambda: None)

    def run(*arguments: str | Path) -> Done:
        (tmp_path / "rubric.json").write_text(json.dumps(RUBRIC))
        rubric = [] if "--rubric" in arguments else ["--rubric", str(tmp_path / "rubric.json")]
        monkeypatch.setattr(sys, "argv", ["sgg-rl", "score", *map(str, arguments), *rubric])
        monkeypatch.setenv("COLUMNS", "80")
        with pytest.raises(SystemExit) as end:
            main()
        shown = capsys.readouterr()
        return Done(int(end.value.code or 0), shown.out, shown.err)

    return run


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[..., Path]:
    def write(*rows: Any) -> Path:
        file = tmp_path / "rows.jsonl"
        texts = [item if isinstance(item, str) else json.dumps(item) for item in rows]
        file.write_text("".join(f"{text}\n" for text in texts))
        return file

    return write


Jsonl = Callable[..., Path]


def test_a_completion_without_a_reference_is_read(score: Sgg, tmp_path: Path) -> None:
    file = tmp_path / "completion.txt"
    file.write_text(FAULTY)
    done = score(file)
    assert done.code == 0
    assert "completion.txt: ok, only read: there is no reference" in done.lines
    assert "Objects: 2 read" in done.lines
    assert "man.1 -near-> dog.1" in done.lines
    assert "objects[2] duplicate_id: an earlier object has this id" in done.lines
    assert json.dumps(MAN) in done.lines
    assert "relationships[1] dangling_relationship: no object has the id ghost.1" in done.lines
    assert "total" not in done.out


def test_a_scored_completion_is_broken_down(score: Sgg, jsonl: Jsonl) -> None:
    done = score(jsonl(row(FAULTY, id="a")))
    assert done.code == 0
    assert "a: ok, total 2.500 of 10" in done.lines
    words = [line.split() for line in done.lines]
    assert ["object_precision", "0.500", "2", "1.000"] in words
    assert "format: 2 parts were dropped" in done.lines
    assert ["man.1", "man.1", "1.00", "same", "hit"] in words
    assert ["dog.1", "horse.1", "1.00", "0.00", "wrong", "name"] in words
    assert "horse.1 [50, 0, 100, 100], matched with dog.1" in done.lines
    assert "wrong predicate: the reference has riding" in done.out
    assert "man.1 -riding-> horse.1 (horse.1 missed, too)" in done.lines
    assert max(map(len, done.out.splitlines())) <= 80


def test_a_file_of_text_takes_its_reference_from_the_options(score: Sgg, tmp_path: Path) -> None:
    (tmp_path / "completion.txt").write_text(GOOD)
    (tmp_path / "reference.json").write_text(json.dumps(REFERENCE))
    options = ["--reference", tmp_path / "reference.json", "--image-size", "100x100"]
    done = score(tmp_path / "completion.txt", *options)
    assert "completion.txt: ok, total 10.000 of 10" in done.lines
    done = score(tmp_path / "completion.txt", *options, "--thinking")
    assert "format: it does not begin with <think>...</think>" in done.lines
    done = score(tmp_path / "completion.txt", *options, "--box-space", "relative_1")
    assert "box off" in done.out or "junk" in done.out
    done = score(tmp_path / "completion.txt", *options, "--task", "det", "--rubric", "r1-soft")
    assert "completion.txt: ok, total 5.000 of 5" in done.lines
    assert "Relationships" not in done.out
    done = score(tmp_path / "completion.txt", *options, "--task", "cls", "--rubric", "r1-hard")
    assert "completion.txt: ok, total 6.000 of 6" in done.lines
    assert "Objects" not in done.out


def test_what_a_row_says_comes_before_the_options(score: Sgg, jsonl: Jsonl, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text(json.dumps({"objects": [], "relationships": []}))
    options = ["--reference", tmp_path / "other.json", "--image-size", "7x7", "--thinking"]
    said = row(GOOD, box_space="relative_1000", require_thinking=False)
    rows = jsonl(said, {"completion": GOOD})
    done = score(rows, *options, "--box-space", "relative_1", "--json")
    totals = [json.loads(line)["total"] for line in done.out.splitlines()]
    assert totals == [pytest.approx(10), 0]


def test_where_json_breaks_is_pointed_at(score: Sgg, jsonl: Jsonl) -> None:
    done = score(jsonl(row('<answer>{"objects" []}</answer>')))
    assert "line 1: invalid_json, total 0.000 of 10" in done.lines
    before, pointer = done.out.splitlines()[-2:]
    assert before[pointer.index("^") :].startswith("[]}")
    assert "line 1, column 20:" in done.lines
    assert "invalid_json (truncated)" in score(jsonl(row(CUT))).out


def test_many_completions_get_a_line_each_and_a_summary(score: Sgg, jsonl: Jsonl) -> None:
    texts = [GOOD, FAULTY, CUT, "no"]
    done = score(jsonl(*(row(text, id=f"r{i}") for i, text in enumerate(texts))))
    assert done.code == 0
    found = {line.split()[-1]: line.split() for line in done.lines if line[-2:-1] == "r"}
    assert found["r0"] == ["ok", "10.00", "1.00", "1.00", "1.00", "1.00", "1.00", "-", "r0"]
    assert found["r1"][:2] == ["ok", "2.50"]
    assert found["r1"][-2] == "2"
    assert found["r2"][0] == "invalid_json"
    assert "4 completions: 2 ok, 1 invalid_json (truncated), 1 no_answer" in done.lines
    assert "dropped parts: 1 duplicate_id, 1 dangling_relationship" in done.lines
    assert "total: mean 3.125 of 10, standard deviation 4.098" in done.lines
    assert "node_category: mean 0.375" in done.lines


def test_the_default_is_the_rubric_balanced(jsonl: Jsonl) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cli.main", "score", str(jsonl(row(FAULTY))), "--json"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    group = RewardGroup.model_validate(
        {
            "group_id": "g",
            "image_size": (100, 100),
            "box_space": "relative_1000",
            "reference": REFERENCE,
            "completions": [FAULTY],
        }
    )
    shown = json.loads(done.stdout)
    (reward,) = make_scorer("balanced").score([group])[0].rewards
    assert shown["total"] == pytest.approx(reward.total)
    assert {term["name"]: term["value"] for term in shown["terms"]} == reward.breakdown


def test_many_completions_without_references_are_counted(score: Sgg, jsonl: Jsonl) -> None:
    done = score(jsonl({"completion": GOOD}, {"completion": FAULTY}))
    assert ["ok", "2", "1", "2", "line", "2"] in [line.split() for line in done.lines]
    assert "total" not in done.out


def test_detail_shows_all_about_each_and_then_the_summary(score: Sgg, jsonl: Jsonl) -> None:
    done = score(jsonl(row(GOOD), row(FAULTY)), "--detail")
    assert "line 1: ok, total 10.000 of 10" in done.lines
    assert "line 2: ok, total 2.500 of 10" in done.lines
    assert "2 completions: 2 ok" in done.lines


KEYS = {
    "id",
    "task",
    "notation",
    "status",
    "truncated",
    "failure",
    "total",
    "max_total",
    "terms",
    "format_faults",
    "objects",
    "missed_objects",
    "triplets",
    "missed_triplets",
    "dropped",
    "reference_dropped",
}


def test_the_compact_notation_scores_as_json_does(score: Sgg, jsonl: Jsonl) -> None:
    lines = "objects\nA man 0 0 500 1000\nB horse 500 0 1000 1000\nrelationships\nA riding B\nend"
    text = f"<answer>\n{lines}\n</answer>"
    rows = [row(text), row(GOOD), row(GOOD, notation="json")]
    done = score(jsonl(*rows), "--notation", "compact", "--json")
    found = [json.loads(line) for line in done.out.splitlines()]
    assert [(item["notation"], item["status"], item["total"]) for item in found] == [
        ("compact", "ok", 10),
        ("compact", "no_answer", 0),
        ("json", "ok", 10),
    ]


def test_json_has_the_same_keys_for_every_completion(score: Sgg, jsonl: Jsonl) -> None:
    overflow = answer([{"id": "a.1", "bbox": [0, 0, 1, 1]}], []).replace("1, 1]", "1, 1e999]")
    rows = [row(GOOD), row(CUT), {"completion": overflow}, row("no", id="x")]
    done = score(jsonl(*rows), "--json")
    objects = [json.loads(line, parse_constant=pytest.fail) for line in done.out.splitlines()]
    assert len(objects) == 4
    assert all(set(item) == KEYS for item in objects)
    assert [item["total"] for item in objects] == [10, 0, None, 0]
    assert objects[1]["failure"]["place"]["column"] == len(CUT) + 1
    assert objects[2]["dropped"][0]["reason"] == "non_finite_box"
    assert objects[3]["id"] == "x"


BAD_ROWS = [
    ("nonsense", "not JSON"),
    ("[1]", "the row"),
    ({"text": "x"}, "completion: Field required"),
    (row(GOOD, image_sise=[1, 1]), "image_sise"),
    (row(GOOD, image_size=[0, 100]), "image_size.0"),
    (row(GOOD, box_space="pixels"), "box_space"),
    (row(GOOD, num_tokens=-1), "num_tokens"),
    (row(GOOD, reference={"objects": [{"id": "a", "bbox": [1]}]}), "reference.objects.0.bbox.1"),
    ({"completion": GOOD, "reference": REFERENCE}, "image_size: a reference needs it"),
    ('{"completion": "x", "reference": {"objects": [], "relationships": NaN}}', "relationships"),
]


@pytest.mark.parametrize(("bad", "message"), BAD_ROWS)
def test_a_bad_row_is_named_and_the_others_are_scored(
    bad: Any, message: str, score: Sgg, jsonl: Jsonl
) -> None:
    done = score(jsonl(row(GOOD), bad, row(FAULTY, id="last")))
    assert done.code == 1
    assert "2 completions: 2 ok" in done.lines
    first, last = done.err.splitlines()
    assert first.startswith("sgg-rl: line 2: ")
    assert message in first
    assert "a row was not scored" in last


def test_a_rubric_that_counts_tokens_needs_them_in_each_row(
    score: Sgg, jsonl: Jsonl, tmp_path: Path
) -> None:
    (tmp_path / "mine.toml").write_text(
        'name = "mine"\n[terms]\nnode_box = 1\nlength_penalty = 1\n[length]\nstart = 5\nend = 9\n'
    )
    rows = jsonl(row(GOOD, num_tokens=7, id="a"), row(GOOD, id="b"))
    done = score(rows, "--rubric", tmp_path / "mine.toml")
    assert done.code == 1
    assert "a: ok, total 1.500 of 2" in done.lines
    assert "'b' has no num_tokens" in done.err


def test_a_rubric_may_be_the_file_of_a_run(score: Sgg, jsonl: Jsonl, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(
        '[run]\nname = "mine"\n[reward.rubric]\nname = "mine"\nterms = { node_box = 3 }\n'
    )
    done = score(jsonl(row(GOOD, id="a")), "--rubric", tmp_path / "run.toml")
    assert done.code == 0
    assert any(line.startswith("a: ok, total ") and line.endswith(" of 3") for line in done.lines)


@pytest.fixture
def forgets_terms(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Terms that a test loads are no other test's."""
    before = dict(terms._TERMS)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    terms._TERMS.clear()
    terms._TERMS.update(before)


@pytest.mark.usefixtures("forgets_terms")
def test_the_file_of_a_run_brings_its_own_terms(
    score: Sgg, jsonl: Jsonl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text("def quarter(p, r):\n    return 0.25\n")
    Path("run.toml").write_text(
        '[reward]\nterms = ["mine.py:quarter"]\n'
        "[reward.rubric]\nterms = { node_category = 1, quarter = 4 }\n"
    )
    rows = jsonl(row(GOOD, id="a"))
    for more in ([], ["--term", "./mine.py:quarter"]):
        assert "a: ok, total 2.000 of 5" in score(rows, "--rubric", "run.toml", *more).lines
    done = score(rows, "--term", "mine.py:quarter")
    assert done.code == 2
    assert "--term: the rubric 'custom' gives quarter no weight" in done.err
    assert "triplet_f1 = 5, quarter = 1 }" in done.err


@pytest.mark.usefixtures("forgets_terms")
def test_what_a_term_prints_is_not_in_the_json(score: Sgg, jsonl: Jsonl, tmp_path: Path) -> None:
    code = "print('imported')\ndef chatty(p, r):\n    print('asked')\n    return 0.5\n"
    (tmp_path / "chatty.py").write_text(code)
    rubric = tmp_path / "mine.json"
    rubric.write_text(json.dumps({"terms": {"node_category": 1, "chatty": 2}}))
    term = f"{tmp_path / 'chatty.py'}:chatty"
    done = score(jsonl(row(GOOD)), "--rubric", rubric, "--term", term, "--json")
    assert json.loads(done.out)["total"] == pytest.approx(2)
    assert set(done.err.split()) == {"imported", "asked"}


def test_a_rubric_may_be_a_file_that_names_a_table(
    score: Sgg, jsonl: Jsonl, tmp_path: Path
) -> None:
    table = {"format": "sgg-similarity/1", "source": "t", "names": ["dog", "horse"]}
    (tmp_path / "t.json").write_text(json.dumps(table | {"pairs": [["dog", "horse", 0.5]]}))
    rubric = tmp_path / "mine.json"
    rubric.write_text(json.dumps({"similarity": "table:t.json", "terms": {"node_category": 2}}))
    options = ["--rubric", rubric, "--similarity-folder", tmp_path]
    done = score(jsonl(row(FAULTY)), *options)
    assert "line 1: ok, total 1.500 of 2" in done.lines
    words = ["dog.1", "horse.1", "1.00", "0.50", "wrong", "name"]
    assert words in [line.split() for line in done.lines]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.jsonl"], "cannot read nowhere.jsonl: No such file"),
        (["nowhere.txt"], "cannot read nowhere.txt: No such file"),
        (["FILE", "--image-size", "100"], "--image-size 100 is not WxH"),
        (["FILE", "--box-space", "pixels"], "--box-space pixels: use relative_1000"),
        (["FILE", "--rubric", "nonsense"], "sgg-rl: --rubric: no rubric 'nonsense'; rubrics are b"),
        (["FILE", "--rubric", "nowhere.toml"], "cannot read nowhere.toml"),
        (["FILE", "--rubric", "FILE.json"], "FILE.json is not JSON"),
        (["FILE", "--rubric", "EMPTY.json"], "terms: Field required"),
        (["FILE", "--rubric", "r1-hard", "--task", "det"], "no term about the graph"),
        (["FILE", "--reference", "nowhere.json"], "cannot read nowhere.json"),
        (["FILE", "--reference", "EMPTY.json"], "objects: Field required"),
        (["FILE", "--reference", "FILE.json"], "is not JSON"),
        (["FILE", "--reference", "REFERENCE.json"], "image_size: a reference needs it"),
        (["FILE", "--similarity-folder", "nowhere"], "no folder nowhere"),
        (["FILE", "--task", "nonsense"], "nonsense"),
        ([], "Missing argument"),
    ],
)
def test_bad_usage_is_one_message_and_exit_code_2(
    arguments: list[str],
    message: str,
    score: Sgg,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("FILE").write_text(GOOD)
    Path("FILE.json").write_text("{")
    Path("EMPTY.json").write_text("{}")
    Path("REFERENCE.json").write_text(json.dumps(REFERENCE))
    done = score(*arguments)
    assert (done.code, done.out) == (2, "")
    assert message in done.err


HOSTILE = "\x1b[2J\x07\u202e\u200b[red]x[/red]\x9b1m\ud7ff\r\n"


@pytest.mark.parametrize("options", [[], ["--detail"], ["--json"]])
def test_text_of_models_cannot_steer_the_terminal(
    options: list[str], score: Sgg, jsonl: Jsonl
) -> None:
    man = {"id": f"{HOSTILE}.1", "bbox": [0, 0, 500, 1000]}
    edge = {"subject": man["id"], "predicate": HOSTILE, "object": "horse.1"}
    texts = [answer([man, HORSE], [edge, HOSTILE]), f"<answer>{{{HOSTILE}: }}</answer>", HOSTILE]
    rows = [row(text, id=f"{HOSTILE}{i}") for i, text in enumerate(texts)]
    bad = [json.dumps({HOSTILE: 1}), HOSTILE.replace("\n", "")]
    done = score(jsonl(*rows, *bad, row(GOOD)), *options)
    assert done.code == 1
    shown = done.out + done.err
    assert {c for c in shown if not c.isprintable()} == {"\n"}
    assert "[red]x[/red]" in shown


def test_a_row_may_come_from_the_standard_input(
    score: Sgg, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = f"\n{json.dumps(row(GOOD))}\n".encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert "line 2: ok, total 10.000 of 10" in score("-").lines


def test_a_terminal_that_knows_ascii_only_gets_the_rest_as_codes(jsonl: Jsonl) -> None:
    file = jsonl(row(answer([MAN | {"id": "caf\u00e9.1"}], [])))
    done = subprocess.run(
        [sys.executable, "-m", "cli.main", "score", str(file)],
        cwd=ROOT,
        capture_output=True,
        check=True,
        env={"PYTHONIOENCODING": "ascii", "COLUMNS": "80"},
    )
    assert b"caf\\xe9.1" in done.stdout


def test_a_reader_that_goes_away_ends_it_without_a_traceback(jsonl: Jsonl) -> None:
    file = jsonl(*(row(GOOD) for _ in range(500)))
    command = [sys.executable, "-m", "cli.main", "score", str(file), "--json"]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout
        assert process.stderr
        assert json.loads(process.stdout.readline())["id"] == "line 1"
        process.stdout.close()
        assert process.stderr.read() == b""
