"""Terms that a user writes: loaded by place, scored beside ours, refused in one line."""

import re
import shutil
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from planning.preflight.inputs import _check_rubric
from reward_service import terms
from reward_service.own_terms import load_own_terms
from reward_service.scoring import make_scorer
from reward_service.service.catalogue import EXAMPLE
from services.errors import InvalidInputError, SettingsError
from services.schemas.rewards import RewardGroup
from services.settings import Settings
from tests.unit.reward_service.own_terms import forget
from trainer.checkpoints.inputs import _term

CODE = '''
def polite(predicted, reference):
    """The share of predicted objects that are no men."""
    men = sum(one.category == "man" for one in predicted.objects)
    return 1 - men / max(len(predicted.objects), 1)

def width(predicted, reference):
    return predicted.objects[0].bbox[2] if predicted.objects else 0.0

def no_dogs(predicted, reference):
    if any(one.category == "dog" for one in predicted.objects):
        raise ValueError("a dog")
    return 1

def three(predicted, reference):
    return 3

def undefined(predicted, reference):
    return 0 / len(predicted.objects)

def edge(predicted, reference):
    return 1

async def later(predicted, reference):
    return 1

def leaves(predicted, reference):
    raise SystemExit(3)

half = 0.5
'''
DOG = (
    '<answer>{"objects": [{"id": "dog.1", "bbox": [0, 0, 500, 500]}], "relationships": []}</answer>'
)


@pytest.fixture
def file(tmp_path: Path, own_terms_are_forgotten: None) -> Path:
    """A user's file; what is loaded of it is forgotten at the end."""
    path = tmp_path / "my_rewards.py"
    path.write_text(CODE)
    return path


def group(*completions: str) -> RewardGroup:
    return RewardGroup.model_validate(
        EXAMPLE["groups"][0] | {"completions": list(completions), "num_tokens": None}
    )


def rubric(*names: str) -> dict[str, Any]:
    return {"terms": {"triplet_f1": 5.0} | dict.fromkeys(names, 2.0)}


def test_they_are_weighed_beside_ours(file: Path) -> None:
    load_own_terms([f"{file}:polite", f"{file}:width"])
    scorer = make_scorer(rubric("polite", "width"))
    (scored,) = scorer.score([group(EXAMPLE["groups"][0]["completions"][0], "no graph", DOG)])
    good, bad, dog = scored.rewards
    assert good.breakdown == {"triplet_f1": 1.0, "polite": 0.5, "width": pytest.approx(0.313)}
    assert good.total == pytest.approx(5 + 1 + 0.626)
    assert bad.breakdown == {"triplet_f1": 0.0, "polite": 0.0, "width": 0.0}
    assert dog.breakdown == {"triplet_f1": 0.0, "polite": 1.0, "width": 0.5}


def test_each_completion_meets_the_reference_of_its_own_group(file: Path) -> None:
    file.write_text("def number(p, r):\n    return len(r.relationships) / 4\n")
    load_own_terms([f"{file}:number"])
    second = group(DOG).model_dump(mode="json")
    (one,) = second["reference"]["relationships"]
    second["reference"]["relationships"] = [one | {"predicate": f"p{i}"} for i in range(3)]
    groups = [group(DOG, DOG), RewardGroup.model_validate(second)]
    scored = make_scorer(rubric("number")).score(groups)
    found = [[reward.breakdown["number"] for reward in one.rewards] for one in scored]
    assert found == [[0.25, 0.25], [0.75]]


def test_what_a_term_cannot_score_is_the_fault_of_that_group(file: Path) -> None:
    load_own_terms([f"{file}:no_dogs"])
    scorer = make_scorer(rubric("no_dogs"))
    first = group("no graph", EXAMPLE["groups"][0]["completions"][0])
    second = group(DOG).model_copy(update={"group_id": "second"})
    said = "the term no_dogs of my_rewards.py failed for group 'second': ValueError: a dog"
    with pytest.raises(InvalidInputError, match=f"^{re.escape(said)}$"):
        scorer.score([first, second])


def test_a_term_that_gives_no_number_is_named_with_the_group(file: Path) -> None:
    file.write_text(
        "def some(p, r):\n    return 0.5 if r == p or not p.objects else float('nan')\n"
    )
    load_own_terms([f"{file}:some"])
    said = "the term some of my_rewards.py gave nan for group 'second'; a term is in 0..1"
    with pytest.raises(InvalidInputError, match=f"^{re.escape(said)}$"):
        make_scorer(rubric("some")).score([group(DOG).model_copy(update={"group_id": "second"})])


def test_a_helper_that_is_not_python_is_blamed_by_its_name(file: Path) -> None:
    file.write_text("import helper\ndef mine(p, r):\n    return 1\n")
    file.with_name("helper.py").write_text("SHARE = 1\nSHARE = = 2\n")
    with pytest.raises(SettingsError, match=r"invalid syntax \(helper\.py, line 2\)"):
        load_own_terms([f"{file}:mine"])


def test_other_code_is_another_version_of_the_rubric(file: Path) -> None:
    before = dict(terms._TERMS)
    versions = []
    for code in (CODE, CODE, CODE.replace("1 - men", "men")):
        file.write_text(code)
        load_own_terms([f"{file}:polite"])
        versions.append(make_scorer(rubric("polite")).rubric_version)
        forget(before, "helper", "tools", "tools.deep")
    assert versions[0] == versions[1] != versions[2]


def write_helpers(folder: Path, value: float) -> None:
    """`my_rewards.py` uses two files and a package beside it, one of them when it is called."""
    files = {
        "my_rewards.py": "from tools import deep\ndef mine(p, r):\n"
        "    import helper\n    return helper.SHARE * deep.VALUE\n",
        "helper.py": "SHARE = 0.5\n",
        "tools/__init__.py": "",
        "tools/deep.py": "from .leaf import VALUE\n",
        "tools/leaf.py": f"VALUE = {value}\n",
        "pictures.py": "raise SystemExit('nobody imports this')\n",
    }
    (folder / "tools").mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)


def test_what_a_file_imports_from_its_folder_is_a_part_of_it(file: Path) -> None:
    before, versions = dict(terms._TERMS), []
    for value in (0.5, 0.5, 0.25):
        write_helpers(file.parent, value)
        load_own_terms([f"{file}:mine"])
        scorer = make_scorer(rubric("mine"))
        (scored,) = scorer.score([group(DOG)])
        assert scored.rewards[0].breakdown["mine"] == value / 2
        versions.append(scorer.rubric_version)
        forget(before, "helper", "tools", "tools.deep")
        sys.modules.pop("tools.leaf")
        # As another process: two writes within a second would leave Python's own cache as it is.
        shutil.rmtree(file.parent / "tools/__pycache__", ignore_errors=True)
    assert versions[0] == versions[1] != versions[2]


def test_a_change_of_a_helper_is_seen_by_a_resume_and_one_of_another_file_is_not(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(file.parent)
    write_helpers(file.parent, 0.5)
    place, code = _term("my_rewards.py:mine")
    assert place == "reward.terms mine"
    (file.parent / "pictures.py").write_text("other = 1")
    assert _term("./my_rewards.py:mine") == _term(f"{file}:mine") == (place, code)
    (file.parent / "tools/leaf.py").write_text("VALUE = 0.75\n")
    assert _term("my_rewards.py:mine")[1] != code
    assert _term("installed.terms:mine")[1] == "installed.terms"


def test_a_helper_that_another_module_hides_is_refused(file: Path) -> None:
    file.write_text("import calendar\ndef mine(p, r):\n    return 1\n")
    (file.parent / "calendar.py").write_text("")
    with pytest.raises(SettingsError, match=r"import calendar gives /.*: give that another name"):
        load_own_terms([f"{file}:mine"])


def test_one_function_is_one_term_however_its_place_is_written(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(file.parent)
    load_own_terms(["my_rewards.py:polite", "./my_rewards.py:polite", f"{file}:polite"])
    (file.parent / "other.py").write_text(CODE)
    with pytest.raises(SettingsError, match=r"other.py:polite: there is a term 'polite' already"):
        load_own_terms(["other.py:polite"])


def test_a_term_that_the_rubric_does_not_weigh_is_refused_with_the_line_to_write(
    file: Path,
) -> None:
    places = [f"{file}:polite", f"{file}:width"]
    settings = Settings.model_validate(
        {"model": {"path": "m"}, "data": {"train": "d"}, "reward": {"terms": places}}
    )
    with pytest.raises(SettingsError) as refused:
        _check_rubric(settings)
    assert "'balanced' gives polite, width no weight" in refused.value.message
    written = re.search(r"terms = (\{.*\})", refused.value.message)
    assert written is not None
    weighed = {"terms": tomllib.loads(f"terms = {written[1]}")["terms"]}
    _check_rubric(settings.changed(reward={"rubric": weighed}))


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (
            "{file}:three",
            "the term three of my_rewards.py gave 3 for a small graph; a term is in 0..1",
        ),
        (
            "{file}:undefined",
            "undefined of my_rewards.py failed for an empty graph: ZeroDivisionError: division",
        ),
        ("{file}:edge", "there is a term 'edge' already; give the function another name"),
        ("{file}:half", "is no plain function: wrap it in a def"),
        ("{file}:later", "is no plain function: wrap it in a def"),
        (
            "{file}:leaves",
            "the term leaves of my_rewards.py failed for a small graph: SystemExit: 3",
        ),
        ("{file}:missing", "has no function missing"),
        ("{file}", "is neither FILE.py:FUNCTION nor MODULE:FUNCTION"),
        ("missing.py:polite", "there is no file missing.py"),
        ("no_such_module:polite", "ModuleNotFoundError: No module named 'no_such_module'"),
    ],
)
def test_what_is_no_term_is_refused(file: Path, place: str, message: str) -> None:
    with pytest.raises(SettingsError) as refused:
        load_own_terms([place.format(file=file)])
    assert message in refused.value.message
    assert "\n" not in refused.value.message


def test_a_file_may_hold_whatever_a_module_may(file: Path) -> None:
    """A dataclass asks for the module that it stands in."""
    file.write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\n"
        "class Half:\n    value: float = 0.5\ndef half(p, r):\n    return Half().value\n"
    )
    load_own_terms([f"{file}:half"])
    (scored,) = make_scorer(rubric("half")).score([group(DOG)])
    assert scored.rewards[0].breakdown["half"] == 0.5


def test_a_file_that_fails_is_refused(file: Path) -> None:
    file.write_text("open('/no/such/file')")
    with pytest.raises(SettingsError, match="cannot be imported: FileNotFoundError"):
        load_own_terms([f"{file}:polite"])
