from typing import Any

import numpy as np
import pytest

from services.models.kept_tokens import pack_kept
from services.schemas.rollouts import Completion, RolloutGroup, VersionSpan
from trainer.collection.group_checks import refusal

PLACEHOLDER = 99


def spans(*edges: tuple[int, int, int]) -> list[VersionSpan]:
    return [VersionSpan(policy_version=v, start=start, end=end) for v, start, end in edges]


def refused(
    size: int = 2, *, constrained: bool = False, keeps: bool = False, **fault: Any
) -> str | None:
    """What is wrong with a group of one good completion and one that has the fault."""
    group_fields = {name: fault.pop(name) for name in ("renormalised",) if name in fault}
    good: dict[str, Any] = {
        "text": "",
        "token_ids": [1, 2, 3],
        "rollout_logprobs": [-1.0, -0.5, -0.1],
        "finish_reason": "stop",
        "policy_versions": spans((3, 0, 2), (4, 2, 3)),
        "kept_tokens": kept((1, 4), (2,), (5, 3, 9)) if keeps else None,
    }
    group = RolloutGroup(
        group_id="g",
        attempt=0,
        incarnation=1,
        server_id="s",
        prompt_token_ids=[1],
        completions=[Completion(**good), Completion(**good | fault)],
        sampling_s=0,
        **group_fields,
    )
    return refusal(
        group,
        group_size=size,
        newest_policy_version=4,
        suppressed_token_ids=[PLACEHOLDER],
        constrained=constrained,
        keeps=keeps,
    )


def kept(*sets: tuple[int, ...]) -> str:
    rows = np.array([[*one, *[0] * (3 - len(one))] for one in sets])
    return pack_kept(rows, rows > 0)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({}, None),
        ({"size": 3}, "2 completions, not trainer.group_size (3)"),
        ({"renormalised": True}, "its logprobs are of a part of the vocabulary"),
        ({"renormalised": True, "constrained": True}, None),
        ({"constrained": True}, "without the grammar or top_k that was asked for"),
        ({"token_ids": [], "rollout_logprobs": []}, "a completion without tokens"),
        ({"policy_versions": []}, "a completion without tokens or policy_versions"),
        ({"policy_versions": spans((4, 1, 3))}, "do not cover its 3 tokens, each once"),
        ({"policy_versions": spans((4, 0, 2))}, "do not cover its 3 tokens, each once"),
        ({"policy_versions": spans((3, 0, 1), (4, 2, 3))}, "do not cover its 3 tokens"),
        ({"policy_versions": spans((4, 0, 3), (4, 0, 3))}, "do not cover its 3 tokens"),
        ({"policy_versions": spans((5, 0, 3))}, "sampled with version 5, which this trainer has"),
        ({"rollout_logprobs": [-1.0]}, "rollout_logprobs and token_ids differ in length"),
        ({"token_ids": [1, PLACEHOLDER, 3]}, "a visual placeholder was sampled"),
    ],
)
def test_what_cannot_be_trained_on_is_named(fault: dict[str, Any], reason: str | None) -> None:
    found = refused(**fault)
    assert found is None if reason is None else reason in (found or "")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (kept((1, 4), (2,), (5, 3, 9)), None),
        (kept((1, 4), (4,), (5, 3, 9)), "a token is not among those that the sampler says"),
        (kept((1, 4), (2,)), "kept_tokens is not of 3 tokens"),
        (None, "sampling.top_k needs rollout.engine = 'vllm'"),
    ],
)
def test_a_sampler_has_to_say_what_it_drew_from(text: str | None, reason: str | None) -> None:
    found = refused(keeps=True, constrained=True, renormalised=True, kept_tokens=text)
    assert found is None if reason is None else reason in (found or "")
