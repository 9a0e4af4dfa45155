from typing import Any

import pytest
from pydantic import ValidationError

from services.settings import Settings
from services.settings.checks import advice
from services.settings.training import AlgorithmSettings, SamplingSettings


def settings(algorithm: dict[str, Any], **sections: Any) -> Settings:
    run = {"model": {"path": "x"}, "data": {"train": "x"}, "algorithm": algorithm}
    return Settings.model_validate(run | sections)


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"correction": "mask"}, "old_logprobs"),
        ({"overlong_buffer": 3}, "overlong_penalty"),
        ({"overlong_penalty": 1.0}, "overlong_buffer"),
        ({"max_replaced": 4}, "dynamic_sampling"),
        ({"loss": "ppo"}, "loss"),
        ({"correction_cap": 1.0}, "correction_cap"),
        ({"clip_low": 1.0}, "clip_low"),
        ({"beta": -0.1}, "beta"),
        ({"num_iterations": 0}, "num_iterations"),
        ({"num_mini_batches": 0}, "num_mini_batches"),
        ({"delta": 1.2}, r"delta \(1.2\) must be over 1 \+ clip_high \(1.2\)"),
        ({"delta": 3.0, "loss": "sapo"}, "delta has no effect"),
        ({"sapo_temperature_neg": 0.0}, "sapo_temperature_neg"),
    ],
)
def test_impossible_settings_name_the_field(wrong: dict[str, Any], word: str) -> None:
    with pytest.raises(ValidationError, match=word):
        AlgorithmSettings.model_validate(wrong)


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"top_k": 21}, r"top_k = 21: .* set 20 or fewer, or 0 for all"),
        ({"top_p": 0.9}, r"top_p = 0\.9 without top_k: .* set top_k = 20 beside it"),
    ],
)
def test_a_sampler_tells_20_tokens_at_most(wrong: dict[str, Any], word: str) -> None:
    with pytest.raises(ValidationError, match=word):
        SamplingSettings.model_validate(wrong)
    assert SamplingSettings(top_k=20, top_p=0.9).renormalises
    assert not SamplingSettings().renormalises


def test_a_buffer_longer_than_the_completion_is_refused() -> None:
    overlong = {"overlong_buffer": 300, "overlong_penalty": 1.0}
    settings(overlong, sampling={"max_tokens": 300})
    with pytest.raises(ValidationError, match="overlong_buffer"):
        settings(overlong, sampling={"max_tokens": 299})


def test_mini_batches_divide_a_step_on_every_rank() -> None:
    settings({"num_mini_batches": 2}, trainer={"groups_per_step": 12, "num_ranks": 3})
    with pytest.raises(ValidationError, match=r"algorithm.num_mini_batches \(4\).*num_ranks \(2\)"):
        settings({"num_mini_batches": 4}, trainer={"groups_per_step": 12, "num_ranks": 2})


def test_a_float32_head_rounds_no_logits() -> None:
    trainer = {"float32_head": True}
    settings({}, trainer=trainer)
    with pytest.raises(ValidationError, match=r"trainer.float32_head needs model.head_dtype"):
        settings({}, trainer=trainer, model={"path": "x", "head_dtype": "model"})


@pytest.mark.parametrize(
    ("odd", "cure"),
    [
        ({"loss": "gspo"}, {"clip_low": 3e-4, "clip_high": 4e-4}),
        ({"loss": "dr_grpo"}, {"advantage_scale": "none"}),
        ({"normalise": "terms"}, {"advantage_scale": "batch"}),
        ({"old_logprobs": "trainer"}, {"correction": "truncate"}),
    ],
)
def test_what_is_probably_not_meant_is_said(odd: dict[str, Any], cure: dict[str, Any]) -> None:
    assert advice(settings({})) == []
    assert len(advice(settings(odd))) == 1
    assert advice(settings(odd | cure)) == []
