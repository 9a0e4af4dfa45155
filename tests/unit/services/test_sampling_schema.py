"""What renormalises is marked, and kept out of training unless asked for by name."""

from typing import Any

import pytest
from pydantic import ValidationError

from services.schemas.common import ChatMessage, Sampling, TextPart
from services.schemas.prompts import PromptGroup

RENORMALISING: list[dict[str, Any]] = [
    {"json_schema": "scene_graph"},
    {"json_schema": {"type": "integer"}},
    {"top_p": 0.9},
    {"top_k": 50},
]


def prompt(**sampling: Any) -> PromptGroup:
    return PromptGroup(
        group_id="g",
        incarnation=1,
        epoch=0,
        index=0,
        messages=[ChatMessage(role="user", content=[TextPart(text="What is there?")])],
        images=[],
        sampling=Sampling.model_validate(sampling),
    )


@pytest.mark.parametrize("sampling", RENORMALISING)
def test_training_prompts_refuse_it_unless_asked_by_name(sampling: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="accept_renormalised"):
        prompt(**sampling)
    assert prompt(**sampling, accept_renormalised=True).sampling.renormalises


def test_temperature_and_suppressed_tokens_do_not_renormalise() -> None:
    """The trainer applies both itself."""
    assert not prompt(temperature=0.5, suppress_token_ids=[1, 2], stop=["x"]).sampling.renormalises


@pytest.mark.parametrize("wrong", [{"top_k": 0}, {"top_k": 21}, {"temperature": 0}])
def test_what_greedy_and_wide_answers_were_drawn_from_is_not_told(wrong: dict[str, Any]) -> None:
    good = {"top_k": 20, "kept_tokens": True}
    assert Sampling.model_validate(good).kept_tokens
    with pytest.raises(ValidationError, match="needs a top_k from 1 to 20"):
        Sampling.model_validate(good | wrong)
    assert "kept_tokens" not in Sampling().model_dump(), "servers of before are asked as before"


@pytest.mark.parametrize("seed", [-1, 2**53, 2**70])
def test_seeds_fit_the_generators(seed: int) -> None:
    with pytest.raises(ValidationError):
        Sampling(seed=seed)
