"""Between this project's messages and vLLM's: sampling parameters, completions, errors."""

import math
from collections.abc import Iterable

import numpy as np
from transformers import PreTrainedTokenizerFast
from vllm import SamplingParams
from vllm.exceptions import VLLMClientError
from vllm.logprobs import FlatLogprobs
from vllm.outputs import CompletionOutput
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

from rollout_service.vllm.json_schema import constraint_of
from services.errors import EngineError, InvalidInputError, SggError
from services.models.kept_tokens import TIES, WIDTH, pack_kept
from services.models.token_text import token_ends
from services.schemas.common import MAX_COMPLETIONS, Sampling
from services.schemas.rollouts import Completion, VersionSpan

_INITIAL_VERSION = "default"
"""vLLM's own label for the weights that it started with."""
_FINISHED = ("stop", "length", "abort")
MAX_LOGPROBS = WIDTH
"""Likeliest tokens that vLLM can be asked for, beside each sampled one."""


def sampling_params(sampling: Sampling) -> SamplingParams:
    """What vLLM is asked for.

    Raises:
        InvalidInputError: The JSON schema is too large, or the grammar is not served.
        ValueError: vLLM refuses a value.
    """
    constraint = constraint_of(sampling)
    return SamplingParams(
        # Greedy completions of a prompt are all the same, and vLLM refuses to sample them twice.
        n=sampling.n if sampling.temperature > 0 else 1,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        max_tokens=sampling.max_tokens,
        # vLLM gives the completions of a group the seeds from here on, one each.
        seed=None if sampling.seed is None else sampling.seed * MAX_COMPLETIONS,
        stop=sampling.stop,
        # A finite bias would leave them a probability, which the trainer's mask does not have.
        logit_bias=dict.fromkeys(sampling.suppress_token_ids, -math.inf) or None,
        structured_outputs=StructuredOutputsParams(**constraint) if constraint else None,
        logprobs=_num_likeliest(sampling),
        flat_logprobs=True,
        detokenize=bool(sampling.stop),  # otherwise decoded once, at the end
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def completion(
    output: CompletionOutput, sampling: Sampling, tokenizer: PreTrainedTokenizerFast
) -> Completion:
    """One answer of vLLM's.

    Raises:
        InvalidInputError: What is suppressed is all that the schema or grammar allows.
        EngineError: It ended in another error, or the policy's numbers are not finite.
    """
    token_ids = list(output.token_ids)
    if output.finish_reason not in _FINISHED:
        if sampling.constrained and sampling.suppress_token_ids:
            name = "grammar" if sampling.grammar is not None else "json_schema"
            raise InvalidInputError(f"{name} and suppress_token_ids leave no token to sample")
        raise EngineError(f"vLLM ended a completion with {output.finish_reason!r}; ask again")
    # Of each token: itself, then the likeliest.
    logprobs = output.logprobs.logprobs[:: 1 + _num_likeliest(sampling)]
    spans = [
        VersionSpan(policy_version=_number(span.version), start=span.start, end=span.end)
        for span in output.weight_versions or []
    ]
    check_finite(logprobs, output)
    # A stop string is cut off the text; its tokens stay, for they were sampled.
    text = output.text if sampling.stop else tokenizer.decode(token_ids, skip_special_tokens=True)
    ends = token_ends(tokenizer.backend_tokenizer, token_ids, text) if sampling.token_ends else None
    return Completion(
        text=text,
        token_ids=token_ids,
        rollout_logprobs=logprobs,
        finish_reason=output.finish_reason,
        policy_versions=spans,
        token_ends=ends,
        kept_tokens=_kept_tokens(output.logprobs, sampling) if sampling.kept_tokens else None,
    )


def check_finite(logprobs: Iterable[float], output: CompletionOutput) -> None:
    """See that sampled tokens have log-probabilities.

    Raises:
        EngineError: A weight of the policy is damaged, or vLLM's arithmetic; it names the version,
            which vLLM says of a whole answer.
    """
    if all(map(math.isfinite, logprobs)):
        return
    spans = output.weight_versions or []
    versions = " and ".join(dict.fromkeys(str(_number(span.version)) for span in spans))
    policy = f"policy version {versions}" if versions else "the policy that is served now"
    raise EngineError(
        f"{policy} on this server gives log-probabilities that are not finite (NaN or infinite): "
        "no prompt's fault; start the server again, and if that does not help, the weights "
        "themselves are damaged"
    )


def _num_likeliest(sampling: Sampling) -> int:
    """How many tokens vLLM is asked for, beside each sampled one."""
    return sampling.top_k + TIES if sampling.kept_tokens else 0


def _kept_tokens(found: FlatLogprobs, sampling: Sampling) -> str:
    """Those with a probability: all others have none once `top_k` and `top_p` are applied."""
    rows = (-1, 1 + _num_likeliest(sampling))
    ids = np.array(found.token_ids, dtype=np.int64).reshape(rows)[:, 1:]
    kept = np.array(found.logprobs).reshape(rows)[:, 1:] > -np.inf
    if kept[:, -1].any():
        raise EngineError(
            f"over {sampling.top_k + TIES - 1} tokens are kept with top_k = {sampling.top_k}: the "
            "policy finds many exactly as likely; set model.head_dtype to float32, or top_k to 0"
        )
    return pack_kept(ids, kept)


def sampling_error(error: Exception) -> SggError:
    """The prompt's own fault, which every server would find again, or the engine's."""
    if isinstance(error, SggError):
        return error
    # A model's image processor says "ValueError", which vLLM wraps.
    if isinstance(error, VLLMClientError | ValueError) or isinstance(error.__cause__, ValueError):
        return InvalidInputError(f"vLLM refuses the prompt: {error.__cause__ or error}")
    cause = error.__cause__ or error
    return EngineError(f"vLLM failed: {str(cause) or type(cause).__name__}")


def _number(label: str) -> int:
    return 0 if label == _INITIAL_VERSION else int(label)
