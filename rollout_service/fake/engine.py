"""An engine without a model: scripted answers at a set pace, with exact versions.

For trying queues, updates and load on any machine. It obeys the same rules as the real one: nothing
is sampled while paused, each token is labelled with the version that was loaded when it came,
requests in flight survive an update.
"""

import asyncio
import hashlib
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from rollout_service.engine import Engine, EngineResult, GroupRequest, check_images
from rollout_service.fake.vocabulary import ByteVocabulary, Vocabulary
from services.errors import EngineError, InvalidInputError
from services.schemas.common import Sampling, TextPart
from services.schemas.rollouts import Completion, VersionSpan
from services.schemas.weights import Rendezvous, WeightManifest
from weight_sync.engine import Shape, Staged
from weight_sync.transports.files import StagedFile

_STEP_TOKENS = 8
"""Tokens of each completion between two chances to pause."""
_INVALID_SHARE = 0.125
_NAMES = [
    f"{color} {shape}" for color in ("red", "green", "blue") for shape in ("circle", "square")
]
_PREDICATES = ("left of", "right of", "above", "below")


@dataclass(kw_only=True, slots=True)
class _Draft:
    """A completion on its way."""

    plan: list[int]
    """Token ids that it will have."""
    finish_reason: Literal["stop", "length"]
    done: int = 0
    spans: list[VersionSpan] = field(default_factory=list)

    def extend(self, version: int) -> None:
        """Sample the next few tokens."""
        start, self.done = self.done, min(self.done + _STEP_TOKENS, len(self.plan))
        if self.spans and self.spans[-1].policy_version == version:
            start = self.spans.pop().start
        self.spans.append(VersionSpan(policy_version=version, start=start, end=self.done))


class FakeEngine(Engine):
    """Answers are a function of prompt, image, seed and version.

    Example: `FakeEngine(tokens_per_s=2000.0, max_model_len=3072)`
    """

    def __init__(
        self,
        *,
        tokens_per_s: float,
        max_model_len: int,
        max_images: int = 1,
        gpus: tuple[str, ...] = (),
        vocabulary: Vocabulary | None = None,
    ) -> None:
        """Ready after `start`.

        Args:
            tokens_per_s: Pace of all completions together.
            max_model_len: Prompt and completion, in tokens.
            max_images: The most of one prompt.
            gpus: UUIDs to state as its GPUs'.
            vocabulary: Makes tokens of prompts and answers; bytes where it is None.
        """
        self.gpus = gpus
        self._vocabulary = vocabulary or ByteVocabulary()
        self._tokens_per_s = tokens_per_s
        self._max_model_len = max_model_len
        self._max_images = max_images
        self._version = 0
        # Held for each step of a group, and all through a pause: so no step happens while paused,
        # and groups share the pace in turn.
        self._device = asyncio.Lock()
        self._paused = False

    async def start(self) -> None:
        """See `Engine.start`."""

    async def stop(self) -> None:
        """See `Engine.stop`."""

    async def sample(self, request: GroupRequest) -> EngineResult:
        """See `Engine.sample`."""
        check_images(request.messages, len(request.images), self._max_images)
        if request.adapter is not None:
            raise InvalidInputError("the fake engine has no adapters")
        prompt = await asyncio.to_thread(self._prompt, request)
        room = self._max_model_len - len(prompt)
        if room < 1:
            raise InvalidInputError(
                f"the prompt has {len(prompt)} tokens; the model takes {self._max_model_len}"
            )
        drafts: list[_Draft] = []
        while not drafts or any(draft.done < len(draft.plan) for draft in drafts):
            async with self._device:
                # Of the version that samples the first tokens: an update may come before them.
                drafts = drafts or self._draft_all(request, prompt, room)
                open_drafts = [draft for draft in drafts if draft.done < len(draft.plan)]
                await asyncio.sleep(len(open_drafts) * _STEP_TOKENS / self._tokens_per_s)
                for draft in open_drafts:
                    draft.extend(self._version)
        return EngineResult(
            prompt_token_ids=prompt, completions=[self._finish(d, request.sampling) for d in drafts]
        )

    async def check_tensors(self, shapes: Mapping[str, Shape], *, partial: bool) -> None:
        """See `Engine.check_tensors`: any will do."""

    async def check_adapter(self, layers: Mapping[str, Shape]) -> None:
        """See `Engine.check_adapter`: any will do."""

    async def pause(self) -> None:
        """See `Engine.pause`."""
        if not self._paused:
            await self._device.acquire()
            self._paused = True

    async def connect(self, rendezvous: Rendezvous) -> None:
        """See `Engine.connect`."""
        raise EngineError("the fake engine has no GPU to receive a broadcast with")

    async def load_weights(self, staged: Staged, manifest: WeightManifest) -> None:
        """See `Engine.load_weights`; a file has to be there."""
        if not self._paused:
            raise EngineError("weights are loaded while paused only")
        if isinstance(staged, StagedFile) and not await asyncio.to_thread(staged.path.exists):
            raise EngineError(f"{staged.path} is gone")
        self._version = manifest.policy_version

    async def resume(self) -> None:
        """See `Engine.resume`."""
        if self._paused:
            self._paused = False
            self._device.release()

    async def check_health(self) -> None:
        """See `Engine.check_health`: nothing here can die."""

    def _prompt(self, request: GroupRequest) -> list[int]:
        text = "\n".join(
            p.text for m in request.messages for p in m.content if isinstance(p, TextPart)
        )
        pictures = [token for image in request.images for token in self._vocabulary.image(image)]
        return pictures + self._vocabulary.encode(text)

    def _draft_all(self, request: GroupRequest, prompt: list[int], room: int) -> list[_Draft]:
        seed = hashlib.sha256(str(prompt).encode() + b"".join(request.images)).hexdigest()
        seed += f"/{request.sampling.seed}/{self._version}"
        n = request.sampling.n
        return [self._draft(f"{seed}/{i}", request.sampling, room) for i in range(n)]

    def _draft(self, seed: str, sampling: Sampling, room: int) -> _Draft:
        if sampling.temperature == 0:
            seed = seed.rpartition("/")[0]  # greedy: all completions of a group are the same
        rng = random.Random(seed)
        words = self._vocabulary
        plan = [*words.encode(_scene_text(rng)), words.end]
        plan = [token for token in plan if token not in sampling.suppress_token_ids]
        plan = plan or words.encode(" ")
        limit = min(sampling.max_tokens, room)
        return _Draft(plan=plan[:limit], finish_reason="stop" if len(plan) <= limit else "length")

    def _finish(self, draft: _Draft, sampling: Sampling) -> Completion:
        text = self._vocabulary.decode(draft.plan)
        ends = self._vocabulary.token_ends(draft.plan, text) if sampling.token_ends else None
        return Completion(
            text=text,
            token_ids=draft.plan,
            rollout_logprobs=[-0.01 * (1 + token % 7) for token in draft.plan],
            finish_reason=draft.finish_reason,
            policy_versions=draft.spans,
            token_ends=ends,
        )


def _scene_text(rng: random.Random) -> str:
    names = rng.sample(_NAMES, rng.choice((2, 3)))
    objects = [{"id": f"{name}.{i}", "bbox": _box(rng)} for i, name in enumerate(names, start=1)]
    relationship = {
        "subject": objects[0]["id"],
        "predicate": rng.choice(_PREDICATES),
        "object": objects[1]["id"],
    }
    answer = {"objects": objects, "relationships": [relationship]}
    text = json.dumps(answer, separators=(",", ":"))
    return text if rng.random() >= _INVALID_SHARE else text[: len(text) // 2]


def _box(rng: random.Random) -> list[int]:
    (left, right), (top, bottom) = (sorted(rng.sample(range(0, 1001, 125), 2)) for _ in range(2))
    return [left, top, right, bottom]
