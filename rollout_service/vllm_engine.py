"""Sampling with vLLM. Weights change through its RL API alone; `vllm_worker` is the other end."""

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
from safetensors import safe_open
from vllm import AsyncEngineArgs, SamplingParams
from vllm.config.weight_transfer import WeightTransferConfig
from vllm.distributed.weight_transfer.base import (
    WeightTransferInitRequest,
    WeightTransferUpdateRequest,
)
from vllm.exceptions import VLLMClientError
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM

from rollout_service import vllm_worker
from rollout_service.engine import (
    Engine,
    EngineResult,
    FileWeights,
    Shape,
    Weights,
    check_images,
    compare_tensors,
)
from services.errors import EngineError, InvalidInputError, SggError
from services.images import decode_image
from services.schemas.common import ChatMessage, Sampling, TextPart
from services.schemas.rollouts import Completion, VersionSpan
from services.schemas.weights import Rendezvous, WeightManifest
from services.settings import Settings

_BLOCK_SIZE = 32
"""Tokens of a KV block: CPU attention's smallest, for only a prompt's whole blocks are shared."""
_SHUTDOWN_S = 15.0
"""vLLM's processes end by themselves within this time, or are killed."""
_INITIAL_VERSION = "default"
"""vLLM's own label for the weights that it started with."""


class VllmEngine(Engine):
    """`AsyncLLM` for one model on one device."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        # Asked of the driver: CUDA is not initialised here.
        self.gpu = None if current_platform.is_cpu() else current_platform.get_device_uuid(0)
        self._llm: Any = None
        self._expected: dict[str, Shape] = {}
        self._reserved_texts: list[str] = []

    async def start(self) -> None:
        """See `Engine.start`. The event loop goes on meanwhile: vLLM is built in a thread."""
        try:
            self._llm = await asyncio.to_thread(
                AsyncLLM.from_engine_args, _engine_args(self._settings)
            )
            await self._llm.init_weight_transfer_engine(WeightTransferInitRequest())
            tokens = self._llm.get_tokenizer().added_tokens_decoder.values()
            self._reserved_texts = [token.content for token in tokens if token.special]
            shapes = await asyncio.to_thread(_checkpoint_shapes, self._settings.model.path)
            self._expected = await self._renamed(shapes)
        except Exception as error:  # whatever the model's code raises: the caller can only give up
            raise EngineError(f"vLLM cannot load {self._settings.model.path}: {error}") from error

    async def stop(self) -> None:
        """See `Engine.stop`."""
        llm, self._llm = self._llm, None
        if llm is not None:
            # Not in a thread: vLLM's task on this loop would take the end for a crash and say so.
            llm.shutdown(_SHUTDOWN_S)

    async def sample(
        self,
        messages: Sequence[ChatMessage],
        images: Sequence[bytes],
        sampling: Sampling,
        *,
        request_id: str,
        adapter: str | None = None,
    ) -> EngineResult:
        """See `Engine.sample`. The group's completions share one prefill and its images."""
        prompt = await asyncio.to_thread(self._prompt, messages, images)
        try:
            outputs = self._llm.generate(prompt, _sampling_params(sampling), request_id)
            async for output in outputs:
                final = output
        except Exception as error:  # of vLLM's many classes; sorted by whose fault it is
            raise _sampling_error(error) from error
        return self._result(final, sampling.n)

    async def check_tensors(self, shapes: Mapping[str, Shape]) -> None:
        """See `Engine.check_tensors`. Takes the names of any checkpoint layout that vLLM maps."""
        if self._expected:
            tied = await self._renamed({"lm_head.weight": ()})
            compare_tensors(self._expected, await self._renamed(shapes), optional=list(tied))

    async def pause(self) -> None:
        """See `Engine.pause`."""
        # Clearing caches here would also clear the processed images, on which requests already on
        # their way to the engine process rely. Those do not depend on weights; what does is cleared
        # after loading.
        async with _engine_errors("pause"):
            await self._llm.pause_generation(mode="keep", clear_cache=False)

    async def connect(self, rendezvous: Rendezvous) -> None:
        """See `Engine.connect`."""
        raise EngineError("this engine takes no broadcasts yet")

    async def load_weights(self, weights: Weights, manifest: WeightManifest) -> None:
        """See `Engine.load_weights`."""
        if not isinstance(weights, FileWeights):
            raise EngineError(f"this engine does not load {type(weights).__name__} yet")
        async with _engine_errors("load weights"):
            await self._llm.start_weight_update()
            request = WeightTransferUpdateRequest(update_info={"file": str(weights.path)})
            await self._llm.update_weights(request)
            await self._llm.finish_weight_update(str(manifest.policy_version))
            # Requests in flight are prefilled again by the new weights.
            await self._llm.reset_prefix_cache(reset_running_requests=True)
            if manifest.vision_trained:
                await self._llm.reset_encoder_cache()

    async def resume(self) -> None:
        """See `Engine.resume`."""
        async with _engine_errors("resume"):
            await self._llm.resume_generation()

    async def check_health(self) -> None:
        """See `Engine.check_health`."""
        if self._llm is None:
            raise EngineError("vLLM is not running")
        async with _engine_errors("answer"):
            await self._llm.check_health()

    async def _renamed(self, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
        """Under the names by which vLLM knows the tensors, whatever the checkpoint's layout."""
        names = (await self._llm.collective_rpc("sgg_model_names", args=(list(shapes),)))[0]
        return {n: s for n, s in zip(names, shapes.values(), strict=True) if n is not None}

    def _prompt(self, messages: Sequence[ChatMessage], images: Sequence[bytes]) -> dict[str, Any]:
        check_images(messages, len(images))
        for part in (part for message in messages for part in message.content):
            if isinstance(part, TextPart):
                self._check_text(part.text)
        chat = [message.model_dump() for message in messages]
        prompt: dict[str, Any] = {
            "prompt": self._llm.get_tokenizer().apply_chat_template(
                chat, tokenize=False, add_generation_prompt=True
            )
        }
        if images:
            prompt["multi_modal_data"] = {"image": [decode_image(image) for image in images]}
        return prompt

    def _check_text(self, text: str) -> None:
        """Control tokens in a text would end turns, or claim image features that are not there."""
        found = [token for token in self._reserved_texts if token in text]
        if found:
            raise InvalidInputError(f"the prompt's text contains the control token {found[0]}")

    def _result(self, output: RequestOutput, n: int) -> EngineResult:
        decode = self._llm.get_tokenizer().decode
        completions = [_completion(one, decode) for one in output.outputs]
        return EngineResult(
            prompt_token_ids=list(output.prompt_token_ids),
            completions=completions * (n // len(completions)),
        )


def _engine_args(settings: Settings) -> AsyncEngineArgs:
    model, rollout = settings.model, settings.rollout
    memory: dict[str, Any] = {"gpu_memory_utilization": rollout.gpu_memory_utilization}
    if current_platform.is_cpu():
        memory = {
            "kv_cache_memory_bytes": int(rollout.kv_cache_gib * 2**30),
            "block_size": _BLOCK_SIZE,
        }
    return AsyncEngineArgs(
        model=model.path,
        dtype=model.dtype,
        seed=settings.run.seed,
        max_num_seqs=rollout.max_num_seqs,
        max_model_len=rollout.max_model_len,
        enforce_eager=rollout.enforce_eager,
        limit_mm_per_prompt={"image": rollout.max_images_per_prompt, "video": 0},
        # By these names: vLLM 0.32 lets the checkpoint's own limits win over a `size` given here.
        mm_processor_kwargs={"min_pixels": model.min_pixels, "max_pixels": model.max_pixels},
        # The probabilities that were sampled from: after temperature and suppressed tokens.
        logprobs_mode="processed_logprobs",
        enable_prefix_caching=True,
        generation_config="auto",
        disable_log_stats=True,
        worker_extension_cls=f"{vllm_worker.__name__}.WorkerExtension",
        weight_transfer_config=WeightTransferConfig(backend=vllm_worker.BACKEND),
        **memory,
    )


def _sampling_params(sampling: Sampling) -> SamplingParams:
    return SamplingParams(
        # Greedy completions of a prompt are all the same, and vLLM refuses to sample them twice.
        n=sampling.n if sampling.temperature > 0 else 1,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        max_tokens=sampling.max_tokens,
        # On CPU a seed kills the engine (vLLM 0.32) as soon as a prefill is split: it rewinds the
        # request's generator by an offset, which CPU generators do not have.
        seed=None if current_platform.is_cpu() else sampling.seed,
        stop=sampling.stop,
        # A finite bias would leave them a probability, which the trainer's mask does not have.
        logit_bias=dict.fromkeys(sampling.suppress_token_ids, -math.inf) or None,
        logprobs=0,  # of the sampled token alone
        flat_logprobs=True,
        detokenize=bool(sampling.stop),  # otherwise decoded once, at the end
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def _completion(output: CompletionOutput, decode: Any) -> Completion:
    token_ids = list(output.token_ids)
    return Completion(
        text=output.text or decode(token_ids, skip_special_tokens=True),
        token_ids=token_ids,
        rollout_logprobs=list(output.logprobs.logprobs),
        finish_reason=output.finish_reason,
        policy_versions=[
            VersionSpan(policy_version=_number(span.version), start=span.start, end=span.end)
            for span in output.weight_versions or []
        ],
    )


def _sampling_error(error: Exception) -> SggError:
    """The prompt's own fault, which every server would find again, or the engine's."""
    # A model's image processor says "ValueError", which vLLM wraps.
    if isinstance(error, VLLMClientError | ValueError) or isinstance(error.__cause__, ValueError):
        return InvalidInputError(f"vLLM refuses the prompt: {error.__cause__ or error}")
    return EngineError(f"vLLM failed: {error.__cause__ or error or type(error).__name__}")


def _number(label: str) -> int:
    return 0 if label == _INITIAL_VERSION else int(label)


@contextlib.asynccontextmanager
async def _engine_errors(what: str) -> AsyncIterator[None]:
    """VLLM's errors, of many classes, as this project's."""
    try:
        yield
    except Exception as error:  # an adapter's boundary: all its failures are one class of ours
        raise EngineError(f"vLLM did not {what}: {error or type(error).__name__}") from error


def _checkpoint_shapes(path: str) -> dict[str, Shape]:
    """Names and shapes in the model's safetensors; empty where it has none: nothing is checked."""
    folder = Path(path)
    if not folder.is_dir():  # a hub name, which vLLM has just downloaded
        folder = Path(huggingface_hub.snapshot_download(path, local_files_only=True))
    shapes: dict[str, Shape] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  # not a dict: it has no iterator
                shapes[name] = tuple(tensors.get_slice(name).get_shape())
    return shapes
