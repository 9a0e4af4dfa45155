"""What most answers of a step fail for is logged once, with an example."""

import json
import logging
from collections.abc import Sequence

import pytest

from services.schemas.groups import TrainGroup
from services.schemas.rewards import Matched, Reward
from tests.train_groups import completion, train_group
from trainer.collection.fault_watch import FaultWatch

RIDING = {"subject": "man.1", "predicate": "riding", "object": "horse.2"}


def answer(key: str = "bbox", relationships: Sequence[object] = (RIDING,)) -> str:
    objects = [{"id": name, key: [0, 0, 9, 9]} for name in ("man.1", "horse.2")]
    return json.dumps({"objects": objects, "relationships": [*relationships]})


GOOD, BBOX_2D = answer(), answer("bbox_2d")
TRIPLES = answer(relationships=[["man.1", "riding", "horse.2"]])


def group(*texts: str) -> TrainGroup:
    """As it is scored; only whether something was dropped is looked at."""
    completions = [completion([1]).model_copy(update={"text": text}) for text in texts]
    rewards = [
        Reward(
            total=0.0,
            status="ok",
            breakdown={},
            matched=Matched(objects=0, relationships=0),
            dropped={} if text == GOOD else {"malformed_object": 2},
        )
        for text in texts
    ]
    return train_group([1], completions).model_copy(update={"rewards": rewards})


def test_a_reason_of_most_answers_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    watch = FaultWatch(2, "sgg")
    with caplog.at_level(logging.WARNING):
        watch.look(group(BBOX_2D, GOOD))
        assert not caplog.messages  # a step has two groups
        for _ in range(3):
            watch.look(group(BBOX_2D, BBOX_2D))
    (message,) = caplog.messages
    assert message.startswith("3 of 4 answers of a step fail for one reason: malformed_object: no")
    assert "no bbox, but bbox_2d" in message
    assert repr(BBOX_2D) in message
    assert "docs/rewards.md" in message


def test_half_of_the_answers_are_not_most(caplog: pytest.LogCaptureFixture) -> None:
    watch = FaultWatch(1, "sgg")
    with caplog.at_level(logging.WARNING):
        watch.look(group(BBOX_2D, BBOX_2D, GOOD, GOOD))
        watch.look(group(BBOX_2D, TRIPLES, TRIPLES, BBOX_2D))
    assert not caplog.messages


def test_answers_that_are_cut_short_need_more_tokens(caplog: pytest.LogCaptureFixture) -> None:
    cut = GOOD[:40]
    (scored,) = group(BBOX_2D).rewards
    rewards = [scored.model_copy(update={"status": "invalid_json", "dropped": {}})]
    with caplog.at_level(logging.WARNING):
        FaultWatch(1, "sgg").look(group(cut).model_copy(update={"rewards": rewards}))
    assert "the answer stops inside its JSON" in caplog.messages[0]
    assert "Raise sampling.max_tokens" in caplog.messages[0]


def test_each_reason_is_said(caplog: pytest.LogCaptureFixture) -> None:
    watch = FaultWatch(1, "sgg")
    with caplog.at_level(logging.WARNING):
        watch.look(group(BBOX_2D))
        watch.look(group(TRIPLES))
    assert [m.partition(" fail")[0] for m in caplog.messages] == ["1 of 1 answers of a step"] * 2
    assert "malformed_relationship: a list" in caplog.messages[1]
