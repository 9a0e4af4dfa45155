"""Checks of a sampled group: why it cannot be trained on, if so."""

from collections.abc import Collection

import numpy as np

from services.errors import InvalidInputError
from services.models.kept_tokens import unpack_kept
from services.schemas.rollouts import Completion, RolloutGroup


def refusal(
    group: RolloutGroup,
    *,
    group_size: int,
    newest_policy_version: int,
    suppressed_token_ids: Collection[int],
    constrained: bool = False,
    keeps: bool = False,
) -> str | None:
    """What is wrong with a group's completions.

    Args:
        group: As it came from the queue.
        group_size: `trainer.group_size`.
        newest_policy_version: That any server can have.
        suppressed_token_ids: Never to be sampled: they would shift the features of the images.
        constrained: Whether a grammar or `top_k` was asked for, which the trainer applies too.
        keeps: Whether the sampler has to say which tokens it drew from.
    """
    if len(group.completions) != group_size:
        return f"{len(group.completions)} completions, not trainer.group_size ({group_size})"
    if constrained and not group.renormalised:
        return "it was sampled without the grammar or top_k that was asked for"
    if group.renormalised and not constrained:
        return "its logprobs are of a part of the vocabulary: the ratios would be biased"
    for completion in group.completions:
        wrong = _completion_refusal(completion, newest_policy_version, suppressed_token_ids)
        wrong = wrong or (_kept_refusal(completion) if keeps else None)
        if wrong:
            return wrong
    return None


def _completion_refusal(
    completion: Completion, newest_policy_version: int, suppressed_token_ids: Collection[int]
) -> str | None:
    spans, num_tokens = completion.policy_versions, len(completion.token_ids)
    if not num_tokens or not spans:
        return "a completion without tokens or policy_versions"
    if [0, *(span.end for span in spans)] != [*(span.start for span in spans), num_tokens]:
        return f"policy_versions do not cover its {num_tokens} tokens, each once"
    newest = max(span.policy_version for span in spans)
    if newest > newest_policy_version:
        return f"sampled with version {newest}, which this trainer has not published"
    if len(completion.rollout_logprobs) != num_tokens:
        return "rollout_logprobs and token_ids differ in length"
    if not frozenset(suppressed_token_ids).isdisjoint(completion.token_ids):
        return "a visual placeholder was sampled"
    return None


def _kept_refusal(completion: Completion) -> str | None:
    if completion.kept_tokens is None:
        return (
            "a completion does not say which tokens it was drawn from: sampling.top_k needs "
            "rollout.engine = 'vllm'"
        )
    try:
        kept = unpack_kept(completion.kept_tokens, len(completion.token_ids))
    except InvalidInputError as error:
        return error.message
    if not (kept == np.array(completion.token_ids)[:, None]).any(1).all():
        return "a token is not among those that the sampler says it drew from"
    return None


def image_refusal(group: RolloutGroup, image_token_id: int, expected: int) -> str | None:
    """Whether sampler and trainer see the image differently.

    Args:
        group: As it came from the queue.
        image_token_id: The placeholder of one visual token.
        expected: Visual tokens that the trainer makes of the image.
    """
    found = group.prompt_token_ids.count(image_token_id)
    if found == expected:
        return None
    return (
        f"its prompt has {found} image tokens, this trainer's processor makes {expected}: "
        "model.min_pixels and model.max_pixels must be the same for both"
    )
