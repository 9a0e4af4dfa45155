"""The table of trivial policies in docs/rewards.md, made again; and what it has to show."""

import re
from pathlib import Path

import pytest

from benchmarks.trivial_policies import (
    END,
    HONEST,
    POLICIES,
    REFERENCE,
    START,
    Row,
    make_scenes,
    markdown,
    measure,
    replace_table,
)

DOCS = Path(__file__).parents[3] / "docs" / "rewards.md"
HEDGED = "honest graph, each box under three more names"
TRIVIAL = [name for name in POLICIES if name not in (REFERENCE, HONEST, HEDGED)]
CLEARLY = 15
"""Percent of the maximum."""
NUMBER = re.compile(r"\d+\.\d+")


@pytest.fixture(scope="module")
def rows() -> dict[str, Row]:
    return {row.policy: row for row in measure(make_scenes())}


def test_the_docs_hold_todays_table(rows: dict[str, Row]) -> None:
    documented = DOCS.read_text(encoding="utf-8").partition(START)[2].partition(END)[0].strip()
    today = markdown(list(rows.values()))
    again = f"make it again: python benchmarks/trivial_policies.py --write docs/{DOCS.name}"
    assert NUMBER.sub("n", documented) == NUMBER.sub("n", today), again
    for found, expected in zip(NUMBER.findall(documented), NUMBER.findall(today), strict=True):
        # One unit of the last digit: another processor may round another way.
        unit = 10.0 ** -len(expected.partition(".")[2])
        assert float(found) == pytest.approx(float(expected), abs=1.01 * unit), again


@pytest.mark.parametrize("rubric", ["r1-soft", "r1-hard", "r1-relaxed", "balanced"])
def test_the_reference_earns_the_maximum(rows: dict[str, Row], rubric: str) -> None:
    assert rows[REFERENCE].percent[rubric] == pytest.approx(100)


@pytest.mark.parametrize("policy", [name for name in POLICIES if name != REFERENCE])
def test_the_reference_wins_under_balanced(rows: dict[str, Row], policy: str) -> None:
    assert rows[policy].percent["balanced"] < rows[REFERENCE].percent["balanced"] - CLEARLY


@pytest.mark.parametrize("policy", TRIVIAL)
def test_a_trivial_policy_loses_clearly_to_an_honest_graph_under_balanced(
    rows: dict[str, Row], policy: str
) -> None:
    assert rows[policy].percent["balanced"] <= rows[HONEST].percent["balanced"] - CLEARLY


def test_hedging_names_of_an_honest_graph_does_not_pay_under_balanced(
    rows: dict[str, Row],
) -> None:
    assert rows[HEDGED].percent["balanced"] < rows[HONEST].percent["balanced"] - 5


def test_padding_pays_under_the_rewards_of_recall_alone(rows: dict[str, Row]) -> None:
    """What `balanced` is for; if this changes, the docs are wrong."""
    padded = rows["honest objects, all pairs x all predicates"].percent
    assert padded["r1-soft"] > rows[HONEST].percent["r1-soft"]
    assert rows["reference, 60 junk boxes, all pairs x all predicates"].percent[
        "r1-hard"
    ] == pytest.approx(100)


def test_replacing_the_table_keeps_the_rest_of_the_document() -> None:
    text = f"before\n{START}\nold\n{END}\nafter\n"
    assert replace_table(text, "new") == f"before\n{START}\nnew\n{END}\nafter\n"
    with pytest.raises(ValueError, match="put the lines"):
        replace_table("no markers", "new")
