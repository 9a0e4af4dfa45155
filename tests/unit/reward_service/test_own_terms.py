"""Terms that a user writes: loaded by place, scored beside ours, refused in one line."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reward_service import own_terms, terms
from reward_service.own_terms import load_own_terms
from reward_service.scoring import make_scorer
from reward_service.service.catalogue import EXAMPLE
from services.errors import InvalidInputError, SettingsError
from services.schemas.rewards import RewardGroup

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
def file(tmp_path: Path) -> Iterator[Path]:
    """A user's file; what is loaded of it is forgotten at the end."""
    path = tmp_path / "my_rewards.py"
    path.write_text(CODE)
    before = dict(terms._TERMS)
    yield path
    forget(before)


def forget(before: dict[str, terms.Term]) -> None:
    terms._TERMS.clear()
    terms._TERMS.update(before)
    own_terms._load.cache_clear()
    own_terms._module.cache_clear()


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
    with pytest.raises(InvalidInputError, match="the term no_dogs failed: ValueError: a dog"):
        scorer.score([group(DOG)])


def test_other_code_is_another_version_of_the_rubric(file: Path) -> None:
    before = dict(terms._TERMS)
    versions = []
    for code in (CODE, CODE, CODE.replace("1 - men", "men")):
        file.write_text(code)
        load_own_terms([f"{file}:polite"])
        versions.append(make_scorer(rubric("polite")).rubric_version)
        forget(before)
    assert versions[0] == versions[1] != versions[2]


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("{file}:three", "the term three gave 3; a term is in 0..1"),
        ("{file}:undefined", "the term undefined failed: ZeroDivisionError: division by zero"),
        ("{file}:edge", "there is a term 'edge' already; give the function another name"),
        ("{file}:half", "is no plain function: wrap it in a def"),
        ("{file}:later", "is no plain function: wrap it in a def"),
        ("{file}:leaves", "the term leaves failed: SystemExit: 3"),
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
