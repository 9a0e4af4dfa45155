"""The reward attacker: what it finds, that it finds it again, and the holes found before."""

import json
from pathlib import Path
from typing import Any

import pytest

from cli.commands.prepare.reward import _toy_scenes
from reward_service.attack.certificate import findings_value, rescored, write_findings
from reward_service.attack.edits import EDITS, apply_policy
from reward_service.attack.honest import IMPERFECT, imperfect_answer
from reward_service.attack.measure import Court, Scene, as_written
from reward_service.attack.prior import learn_prior
from reward_service.attack.search import MIN_F1_LOSS, Findings, attack
from reward_service.own_terms import load_own_terms
from reward_service.scoring import RewardScorer, make_scorer
from scene_graph.graph import SceneGraph, SceneObject
from scene_graph.notations.answer import MAX_OBJECTS, MAX_RELATIONSHIPS
from scene_graph.similarity import ExactSimilarity, TableSimilarity
from services.errors import InvalidInputError
from services.images import decode_image
from tests.unit.reward_service.own_terms import EXAMPLES, example_rubric

HOLES: dict[str, dict[str, Any]] = json.loads(
    Path(__file__).with_name("holes.json").read_text(encoding="utf-8")
)
"""Rubric to the worst hole that `sgg-rl reward attack RUBRIC` finds on toy-scenes with seed 0"""
SCENES = _toy_scenes(seed=0)[:96]


def found_in(rubric: str) -> Findings:
    return attack(make_scorer(rubric), SCENES, rounds=1)


@pytest.fixture(scope="module")
def findings() -> Findings:
    return found_in("r1-soft")


def scorer_of(rubric: str) -> RewardScorer:
    if rubric not in EXAMPLES:
        return make_scorer(rubric)
    terms, wanted = example_rubric(rubric)
    load_own_terms(terms)
    return make_scorer(wanted)


@pytest.mark.usefixtures("own_terms_are_forgotten")
@pytest.mark.parametrize("rubric", list(HOLES))
def test_a_hole_pays_under_its_rubric_and_not_under_balanced(rubric: str) -> None:
    """Where a rubric is mended on purpose, its entry goes."""
    hole = HOLES[rubric]
    before, after = rescored(hole, scorer_of(rubric))
    for outcome, recorded in ((before, "before"), (after, "after")):
        recorded_values = hole["example"][recorded]
        assert outcome.totals[0] == pytest.approx(recorded_values["reward"])
        assert outcome.f1[0] == pytest.approx(recorded_values["f1"])
        assert outcome.rewards[0].breakdown == pytest.approx(recorded_values["breakdown"])
    assert after.totals[0] > before.totals[0] + 0.05
    assert after.f1[0] <= before.f1[0] - MIN_F1_LOSS
    balanced_before, balanced_after = rescored(hole, make_scorer("balanced"))
    assert balanced_after.totals[0] < balanced_before.totals[0] - 0.05


def test_the_holes_are_those_that_are_known_of_published_rewards() -> None:
    assert set(HOLES) == {"r1-soft", "r1-hard", "r1-relaxed", "sgg-r3"}


def test_an_attack_finds_that_recall_pays_for_a_flood(findings: Findings) -> None:
    assert findings.hackability is not None
    assert findings.hackability > 0.2
    (worst, *_) = findings.holes
    assert worst.effect.gain > 0.05
    assert worst.outcome.totals.mean() > findings.honest.totals.mean()
    assert worst.outcome.f1.mean() <= findings.honest.f1.mean() - MIN_F1_LOSS
    assert any("all pairs" in edit or "each pair" in edit for edit in worst.policy)


def test_the_same_seed_finds_the_same(findings: Findings) -> None:
    again = found_in("r1-soft")
    scorer = make_scorer("r1-soft")
    assert findings_value(again, scorer, seed=0) == findings_value(findings, scorer, seed=0)
    other = attack(make_scorer("r1-soft"), SCENES, rounds=1, seed=1)
    assert other.honest.f1.tolist() != findings.honest.f1.tolist()


def test_ctrl_c_keeps_what_the_rounds_before_it_found(findings: Findings) -> None:
    def stop(number: int, _: int) -> None:
        raise KeyboardInterrupt

    scorer = make_scorer("r1-soft")
    stopped = attack(scorer, SCENES, rounds=1000, on_round=stop)
    assert findings_value(stopped, scorer, seed=0) == findings_value(findings, scorer, seed=0)


def test_no_single_edit_nor_a_round_of_them_pays_under_balanced() -> None:
    found = found_in("balanced")
    assert found.holes == []
    assert found.hackability == 0
    assert found.honest_gain > 0.05


def test_what_is_found_is_written_with_a_drawing_of_each_hole(
    findings: Findings, tmp_path: Path
) -> None:
    scorer = make_scorer("r1-soft")
    write_findings(tmp_path / "new", findings, scorer, seed=0)
    value = json.loads((tmp_path / "new" / "attack.json").read_text())
    assert (value["seed"], value["rounds"], value["num_scenes"]) == (0, 1, 64)
    assert value["rubric"]["name"] == "r1-soft"
    names = {path.name for path in (tmp_path / "new").iterdir()}
    assert names == {"attack.json"} | {f"hole-{n}.png" for n in range(1, len(value["holes"]) + 1)}
    width, height = decode_image((tmp_path / "new" / "hole-1.png").read_bytes()).size
    assert (width, height) == (2020, 1000)
    (before, after) = rescored(value["holes"][0], scorer)
    example = value["holes"][0]["example"]
    assert before.totals[0] == pytest.approx(example["before"]["reward"])
    assert after.totals[0] == pytest.approx(example["after"]["reward"])


@pytest.mark.usefixtures("own_terms_are_forgotten")
def test_a_term_that_fails_is_named_with_the_scene(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def calm(p, r):\n    return 1 / (3 - len(p.objects))\n")
    load_own_terms([f"{file}:calm"])
    said = r"^the term calm of mine\.py failed for group 'toy-0-\d+': ZeroDivisionError: "
    with pytest.raises(InvalidInputError, match=said):
        attack(make_scorer({"terms": {"calm": 1}}), SCENES, rounds=1)


def test_too_few_images_are_refused() -> None:
    with pytest.raises(
        InvalidInputError, match=r"^47 images with triplets are too few: .* needs 48$"
    ):
        attack(make_scorer("r1-soft"), SCENES[:47])


@pytest.mark.parametrize("name", list(EDITS))
def test_every_edit_leaves_an_answer_that_loses_nothing_when_it_is_read(name: str) -> None:
    """Twice, from a full, a small and an empty graph: ids, ends and boxes are right."""
    prior = learn_prior([scene.graph for scene in SCENES[:20]], ExactSimilarity())
    one = SceneGraph(objects=SCENES[0].graph.objects[:1], relationships=())
    none = SceneGraph(objects=(), relationships=())
    graphs = [scene.graph for scene in SCENES[:4]]
    answers = [apply_policy((name, name), graph, prior) for graph in [*graphs, one, none]]
    court = Court(make_scorer("balanced"), SCENES[:6])
    for answer, reward in zip(answers, court.judge(answers).rewards, strict=True):
        assert (reward.status, reward.dropped) == ("ok", {})
        assert len(answer.objects) <= MAX_OBJECTS
        assert len(answer.relationships) <= MAX_RELATIONSHIPS
    changes = [answer != graph for answer, graph in zip(answers, graphs, strict=False)]
    if "synonyms" not in name and name not in _KEEP_A_SMALL_PERFECT_GRAPH:
        assert any(changes)


_KEEP_A_SMALL_PERFECT_GRAPH = {
    "at most 10 triplets", "at most 40 triplets", "objects with triplets only",
}  # fmt: skip
"""A toy scene has three objects at most, all with triplets."""


def test_a_graded_similarity_brings_synonyms_and_other_guesses() -> None:
    graphs = [scene.graph for scene in SCENES[:20]]
    table = TableSimilarity(["left of", "right of"], {("left of", "right of"): 0.9})
    prior = learn_prior(graphs, table)
    assert prior.synonyms == {"left of": "right of", "right of": "left of"}
    assert learn_prior(graphs, ExactSimilarity()).synonyms == {}
    renamed = apply_policy(("synonyms for predicates",), graphs[0], prior)
    swap = {"left of": "right of", "right of": "left of"}
    assert [edge.predicate for edge in renamed.relationships] == [
        swap.get(edge.predicate, edge.predicate) for edge in graphs[0].relationships
    ]


def test_shares_of_few_parts_are_right_on_average() -> None:
    """One scene of two or three objects cannot keep 70 % of them."""
    import random

    domain = learn_prior([scene.graph for scene in SCENES], ExactSimilarity()).domain
    rng = random.Random(0)
    answers = [imperfect_answer(scene.graph, IMPERFECT, domain, rng) for scene in SCENES * 4]
    expected = 0.85 * sum(len(scene.graph.objects) for scene in SCENES * 4)
    assert sum(len(one.objects) for one in answers) == pytest.approx(expected, rel=0.03)


def test_f1_is_that_of_what_was_written() -> None:
    """A reference's box moved by less than a thousandth is written alike, and scores alike."""
    (scene, *_) = SCENES
    moved = SceneGraph(
        objects=tuple(
            SceneObject(id=o.id, bbox=tuple(side + 0.0001 for side in o.bbox))  # type: ignore[arg-type]
            for o in scene.graph.objects
        ),
        relationships=scene.graph.relationships,
    )
    court = Court(make_scorer("balanced"), [scene])
    assert as_written(moved) == as_written(scene.graph)
    assert court.judge([moved]).f1.tolist() == [1.0]
    empty = SceneGraph(objects=(), relationships=())
    assert court.judge([empty]).f1.tolist() == [0.0]
    assert isinstance(scene, Scene)
