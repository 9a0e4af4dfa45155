"""Which tokens the sampler could draw, one after the other: its grammar, replayed.

Under a grammar vLLM allows, at each token, only what may follow. The masks are a function
of the grammar's text and the tokens so far, so they need not be sent: the same library makes them
again, a few microseconds a token. Few of them are distinct.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch

from services.errors import InvalidInputError
from services.schemas.common import Sampling
from services.schemas.rollouts import Completion
from trainer.algorithms.logprobs import AllowedTokens

_REMEMBERED = 4096
"""Masks: 80 MB of a real vocabulary's."""


class MaskReplay:
    """Follows completions through the constraint of their prompt.

    Args:
        tokenizer: The policy's.
        vocab_size: Of the policy's head.
        stop_token_ids: All that end a completion in the sampler: each is allowed where the text may
            end, and after it nothing is.
    """

    def __init__(self, tokenizer: Any, vocab_size: int, stop_token_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self.vocab_size = vocab_size
        self._stop_token_ids = sorted(stop_token_ids)
        self._compiled: dict[str, Any] = {}
        self._distinct: dict[bytes, bytes] = {}
        """Each mask once: of a real vocabulary one has 19 kB, and few of them differ"""

    def masks(self, sampling: Sampling, completion: Completion) -> list[bytes]:
        """The mask of each token, a bit for each entry of the vocabulary, packed.

        Raises:
            InvalidInputError: The tokens do not fit the constraint, so that the sampler had
                another one.
        """
        import xgrammar  # comes with vLLM; runs without a grammar do without it

        matcher = xgrammar.GrammarMatcher(
            self._grammar(sampling), override_stop_tokens=self._stop_token_ids
        )
        row = xgrammar.allocate_token_bitmask(1, self.vocab_size)
        found: list[bytes] = []
        distinct = self._distinct
        if len(distinct) > _REMEMBERED:
            distinct.clear()
        for place, token in enumerate(completion.token_ids):
            if not matcher.is_terminated():
                matcher.fill_next_token_bitmask(row)
                mask = row.numpy().tobytes()
                found.append(distinct.setdefault(mask, mask))
            if matcher.is_terminated() or not matcher.accept_token(token):
                raise InvalidInputError(
                    f"token {place} of a completion does not fit the grammar that was asked "
                    "for: the rollout server samples under another one. Trainer and servers have "
                    "to be of one release, with a real engine"
                )
        if matcher.is_terminated() != (completion.finish_reason == "stop"):
            raise InvalidInputError(
                "a completion ends where its grammar does not: the rollout server has other stop "
                "tokens than the trainer (generation_config.json and tokenizer of the model)"
            )
        return found

    def _grammar(self, sampling: Sampling) -> Any:
        text = sampling.grammar
        assert text is not None  # as `trainer.collection.prompts` asks
        if text not in self._compiled:
            self._compiled[text] = self._compiler.compile_grammar(text)
        return self._compiled[text]

    @cached_property
    def _compiler(self) -> Any:
        """Made when it is first needed: with a real vocabulary that takes a second."""
        import xgrammar

        return xgrammar.GrammarCompiler(
            xgrammar.TokenizerInfo.from_huggingface(self._tokenizer, vocab_size=self.vocab_size)
        )


def allowed_tokens(masks: Sequence[bytes], vocab_size: int) -> AllowedTokens:
    """Packed masks of T tokens as a table of distinct ones, with a place in it for each token."""
    places: dict[bytes, int] = {}
    index = [places.setdefault(mask, len(places)) for mask in masks]
    packed = np.frombuffer(b"".join(places), dtype=np.uint8).reshape(len(places), -1)
    bits = np.unpackbits(packed, axis=1, count=vocab_size, bitorder="little")
    return AllowedTokens(torch.from_numpy(bits.astype(bool)), torch.tensor(index))
