"""Bytes to bytes, with a scorer that fails on some groups."""

import json
from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

import pytest

from reward_service.scoring import RewardScorer, make_scorer
from reward_service.service import request_handler
from reward_service.service.catalogue import EXAMPLE, example_answer
from reward_service.service.request_handler import Answerer
from reward_service.similarity.registry import Similarities
from scene_graph.similarity import ExactSimilarity
from services.errors import InvalidInputError, SggError, TooLargeError, UnavailableError
from services.schemas.rewards import RewardGroup, RewardResponse, ScoredGroup, Task
from tests.reward_process import GOLDEN, REQUEST

GROUP: dict[str, Any] = REQUEST["groups"][0]
FAILURES: dict[str, Exception] = {
    "crash": ZeroDivisionError("secret detail"),
    "away": UnavailableError("the model is loading"),
    "wrong": InvalidInputError("no num_tokens"),
}


class FragileScorer(RewardScorer):
    """Fails on a batch that holds a group named after a failure."""

    def score(self, groups: Sequence[RewardGroup], *, credit: bool = False) -> list[ScoredGroup]:
        for group in groups:
            if group.group_id in FAILURES:
                raise FAILURES[group.group_id]
        return super().score(groups, credit=credit)


def make_fragile(wanted: str | dict[str, Any], task: Task, _: Similarities) -> RewardScorer:
    return FragileScorer(make_scorer(wanted, task).rubric, task, ExactSimilarity())


def answer(*names: str) -> RewardResponse:
    body = json.dumps(REQUEST | {"groups": [GROUP | {"group_id": name} for name in names]})
    with patch.object(request_handler, "make_scorer", make_fragile):
        answered = Answerer(Similarities()).answer(body.encode())
    return RewardResponse.model_validate_json(answered.content)


def test_the_example_is_the_golden_request_and_its_answer_the_golden_response() -> None:
    assert {"schema_version": "1.0", **EXAMPLE} == REQUEST
    found = json.loads(Answerer(Similarities()).answer(json.dumps(EXAMPLE).encode()).content)
    assert found == example_answer()
    golden = json.loads((GOLDEN / "reward_response.json").read_text())
    assert found["rubric_version"] == golden["rubric_version"]
    totals = [[r["total"] for g in one["groups"] for r in g["rewards"]] for one in (found, golden)]
    assert totals[0] == pytest.approx(totals[1])


def test_a_group_that_fails_costs_only_itself(caplog: pytest.LogCaptureFixture) -> None:
    a, crash, b, away, wrong = answer("a", "crash", "b", "away", "wrong").groups
    assert a.rewards == b.rewards
    assert len(a.rewards) == 2
    assert a.error is None
    failed = [group.error for group in (crash, away, wrong) if group.error]
    assert [error.retryable for error in failed] == [True, True, False]
    assert "internal error" in failed[0].detail
    assert [error.detail for error in failed[1:]] == ["the model is loading", "no num_tokens"]
    assert not crash.rewards
    assert "secret detail" in caplog.text
    assert "Traceback" in caplog.text


@pytest.mark.parametrize(
    ("name", "error"),
    [("crash", SggError), ("away", UnavailableError), ("wrong", InvalidInputError)],
)
def test_where_every_group_fails_the_request_does(name: str, error: type[SggError]) -> None:
    with pytest.raises(error) as caught:
        answer(name, name)
    assert type(caught.value) is error
    assert "secret" not in caught.value.message


def test_an_answer_counts_what_it_holds() -> None:
    body = REQUEST | {"groups": [GROUP, "bad", GROUP]}
    found = Answerer(Similarities()).answer(json.dumps(body).encode())
    assert found.statuses == {"ok": 2, "invalid_json": 2}
    assert (found.num_groups, found.num_failed_groups, found.rubric) == (3, 1, "balanced")
    assert 0 < found.scoring_s < 60


def test_a_wrong_rubric_names_its_path() -> None:
    body = json.dumps(REQUEST | {"rubric": {"terms": {"edge": -1}}}).encode()
    with pytest.raises(InvalidInputError) as caught:
        Answerer(Similarities()).answer(body)
    assert caught.value.mistakes[0].path == "body.rubric.terms.edge"


def test_pairs_to_compare_are_bounded_for_the_whole_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    objects, triplets = len(GROUP["reference"]["objects"]), len(GROUP["reference"]["relationships"])
    pairs = 2 * (objects * objects + triplets * triplets)  # the first completion has all of it
    monkeypatch.setattr("reward_service.scoring.MAX_PAIRS", pairs)
    assert len(answer("a").groups) == 1
    with pytest.raises(TooLargeError, match="fewer groups at a time"):
        answer(*"abcdefgh")
