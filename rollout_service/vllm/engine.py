"""Sampling with vLLM. Weights change through its RL API alone."""

import asyncio
import math
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import huggingface_hub
import torch
from PIL import Image
from safetensors import safe_open
from vllm import AsyncEngineArgs, SamplingParams
from vllm.config import StructuredOutputsConfig
from vllm.config.weight_transfer import WeightTransferConfig
from vllm.distributed.weight_transfer.base import WeightTransferInitRequest
from vllm.inputs import EngineInput
from vllm.outputs import RequestOutput
from vllm.platforms import current_platform
from vllm.renderers.inputs.preprocess import parse_model_prompt
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.core_client import AsyncMPClient
from vllm.v1.executor.abstract import Executor
from vllm.v1.executor.uniproc_executor import UniProcExecutor

from rollout_service.engine import Engine, EngineResult, GroupRequest, check_images, compare_tensors
from rollout_service.vllm import cpu as vllm_cpu
from rollout_service.vllm import weights as vllm_weights
from rollout_service.vllm import worker as vllm_worker
from rollout_service.vllm.core_client import ImagesOnceClient
from rollout_service.vllm.cuda import own_gpus, why_not
from rollout_service.vllm.executor import TensorParallelExecutor
from rollout_service.vllm.gpu_memory import server_memory
from rollout_service.vllm.lora import lora_args, lora_request, write_initial_adapter
from rollout_service.vllm.openai import VllmChat
from rollout_service.vllm.pictures import Pictures
from rollout_service.vllm.sampling import (
    MAX_LOGPROBS,
    completion,
    sampling_error,
    sampling_params,
)
from services.errors import EngineError, InvalidInputError, SettingsError
from services.host.environment import set_environment
from services.images import ImageHeader, check_fits
from services.models.chat_template import chat_template
from services.models.families import model_family
from services.schemas.chat import ChatRequest
from services.schemas.common import ChatMessage, Sampling, TextPart
from services.schemas.weights import Rendezvous, WeightManifest
from services.settings import Settings
from weight_sync.engine import Shape, Staged

T = TypeVar("T")

_BLOCK_SIZE = 32
"""Tokens of a KV block: CPU attention's smallest, for only a prompt's whole blocks are shared."""
_LOOK_S = 0.25
"""Between looks whether the engine process lives, while an answer of it is waited for."""
_SHUTDOWN_S = 15.0
"""vLLM's processes end by themselves within this time, or are killed."""


class VllmEngine(Engine):
    """`AsyncLLM` for one model, on one device or several."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        if current_platform.is_cpu() and settings.rollout.model_runner == "v2":
            raise SettingsError("rollout.model_runner = 'v2' is for GPUs: on a CPU set 'v1'")
        recurrent = "linear_attention" in model_family(settings.model.path).layers
        if current_platform.is_cpu() and recurrent and settings.model.dtype != "bfloat16":
            raise SettingsError(
                f"model.dtype = {settings.model.dtype!r}: on a CPU, vLLM computes recurrent layers "
                "in bfloat16 alone: set 'bfloat16'"
            )
        self.gpus = own_gpus(settings.rollout.tensor_parallel_size)
        self._pictures = Pictures(self._check_picture)
        self._llm: Any = None
        self._expected: dict[str, Shape] = {}
        self._reserved_texts: list[str] = []
        self._template: str | None = None
        """Where the tokenizer has none of its own."""
        self._chat: VllmChat | None = None

    async def start(self) -> None:
        """See `Engine.start`. The event loop goes on meanwhile: vLLM is built in a thread."""
        try:
            await asyncio.to_thread(write_initial_adapter, self._settings)
            self._llm = await asyncio.to_thread(_start_vllm, self._settings)
            self.model_runner = "v2" if self._llm.vllm_config.use_v2_model_runner else "v1"
            # Kept by vLLM: no request waits for it.
            await self._answer(self._llm.get_supported_tasks(), "start")
            transfer = WeightTransferInitRequest()
            await self._answer(self._llm.init_weight_transfer_engine(transfer), "start")
            tokenizer = self._llm.get_tokenizer()
            if tokenizer.chat_template is None:
                self._template = chat_template(self._settings.model.path)
            tokens = tokenizer.added_tokens_decoder.values()
            self._reserved_texts = [token.content for token in tokens if token.special]
            shapes = await asyncio.to_thread(_checkpoint_shapes, self._settings.model.path)
            self._expected = await self._renamed(shapes)
            counts = [math.prod(shape) for shape in shapes.values()]
            # A head that is tied to the embedding, mostly the largest tensor, may come as well.
            self.num_elements = sum(counts) + max(counts) if counts else None
            self._chat = VllmChat(
                self._llm, self._settings, served_name(self._settings), self._template
            )
        except Exception as error:  # whatever the model's code raises: the caller can only give up
            path = self._settings.model.path
            raise EngineError(f"vLLM cannot load {path}: {why_not(error)}") from error

    async def stop(self) -> None:
        """See `Engine.stop`."""
        self._pictures.close()
        llm, self._llm = self._llm, None
        if llm is not None:
            # Not in a thread: vLLM's task on this loop would take the end for a crash and say so.
            llm.shutdown(_SHUTDOWN_S)

    async def sample(self, request: GroupRequest) -> EngineResult:
        """See `Engine.sample`. The group's completions share one prefill and its images."""
        self._check_request(request.messages, request.images, request.adapter)
        try:
            params = await self._params(request.sampling)
            rendered = await self._render(request.messages, request.images)
            outputs = self._llm.generate(
                rendered,
                params,
                request.request_id,
                lora_request=lora_request(self._settings, request.adapter),
            )
            async for output in outputs:
                final = output
            return await asyncio.to_thread(self._result, final, request.sampling)
        except Exception as error:  # of vLLM's many classes; sorted by whose fault it is
            raise sampling_error(error) from error

    async def chat(
        self, request: ChatRequest, images: Sequence[bytes]
    ) -> dict[str, Any] | AsyncIterator[str]:
        """See `Engine.chat`."""
        assert self._chat is not None  # it has started
        try:
            self._check_request(request.chat, images)
            await self._check_format(request)
            async with self._pictures.decoded(images) as decoded:
                return await self._chat.complete(request, decoded)
        except Exception as error:  # of vLLM's many classes; sorted by whose fault it is
            raise sampling_error(error) from error

    async def models(self) -> dict[str, Any]:
        """See `Engine.models`."""
        assert self._chat is not None  # it has started
        return await self._chat.models()

    async def check_tensors(self, shapes: Mapping[str, Shape], *, partial: bool) -> None:
        """See `Engine.check_tensors`. Takes the names of any checkpoint layout that vLLM maps."""
        if self._expected:
            tied = await self._renamed({"lm_head.weight": ()})
            given = await self._renamed(shapes)
            compare_tensors(self._expected, given, optional=list(tied), partial=partial)

    async def check_adapter(self, layers: Mapping[str, Shape]) -> None:
        """See `Engine.check_adapter`. vLLM would leave out the vision tower's without a word."""
        vision = [name for name in layers if "visual." in name]
        if vision:
            raise InvalidInputError(f"{vision[0]}: adapters are applied to the language model only")
        for name, shape in (await self._renamed(layers)).items():
            if self._expected and self._expected.get(name) != shape:
                raise InvalidInputError(
                    f"the adapter has {name} of shape {shape}; the model's is "
                    f"{self._expected.get(name, 'not there')}"
                )

    async def pause(self) -> None:
        """See `Engine.pause`."""
        # Clearing caches here would also clear the processed images, on which requests already on
        # their way to the engine process rely. Those do not depend on weights; what does is cleared
        # after loading. `AsyncLLM.pause_generation` asks for the same, and then sleeps 20 ms for
        # callers that look at the outputs meanwhile.
        pausing = self._llm.engine_core.pause_scheduler_async(mode="keep", clear_cache=False)
        await self._answer(pausing, "pause")

    async def connect(self, rendezvous: Rendezvous) -> None:
        """See `Engine.connect`."""
        await self._answer(vllm_weights.join(self._llm, rendezvous), "meet the trainer")

    async def load_weights(self, staged: Staged, manifest: WeightManifest) -> None:
        """See `Engine.load_weights`."""
        loading = vllm_weights.load(self._llm, self._settings, staged, manifest)
        await self._answer(loading, "load weights")

    async def resume(self) -> None:
        """See `Engine.resume`."""
        await self._answer(self._llm.resume_generation(), "resume")

    async def check_health(self) -> None:
        """See `Engine.check_health`."""
        if self._llm is None:
            raise EngineError("vLLM is not running")
        await self._answer(self._llm.check_health(), "answer")

    async def _answer(self, call: Coroutine[Any, Any, T], what: str) -> T:
        """What vLLM answers. It never does where its engine process has died meanwhile.

        Raises:
            EngineError: That, or one of vLLM's errors, which are of many classes.
        """
        llm, answer = self._llm, asyncio.create_task(call)
        try:
            while not answer.done():
                await asyncio.wait({answer}, timeout=_LOOK_S)
                if llm.errored and not answer.done():
                    raise RuntimeError("its engine process is dead")
            return answer.result()
        except Exception as error:  # an adapter's boundary: all its failures are one class of ours
            reason = str(error) or type(error).__name__
            raise EngineError(f"vLLM did not {what}: {reason}") from error
        finally:
            answer.cancel()

    async def _renamed(self, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
        """Under the names by which vLLM knows the tensors, whatever the checkpoint's layout."""
        asked = self._llm.collective_rpc("sgg_model_names", args=(list(shapes),))
        names, *_ = await self._answer(asked, "name its tensors")
        return {n: s for n, s in zip(names, shapes.values(), strict=True) if n is not None}

    def _check_request(
        self, messages: Sequence[ChatMessage], images: Sequence[bytes], adapter: str | None = None
    ) -> None:
        check_images(messages, len(images), self._settings.rollout.max_images_per_prompt)
        known = sorted(self._settings.rollout.adapters)
        if adapter is not None and adapter not in known:
            raise InvalidInputError(
                f"no adapter {adapter!r} here; rollout.adapters has {', '.join(known) or 'none'}"
            )
        # Control tokens in a text would end turns, or claim image features that are not there.
        texts = [p.text for m in messages for p in m.content if isinstance(p, TextPart)]
        found = [token for text in texts for token in self._reserved_texts if token in text]
        if found:
            raise InvalidInputError(f"the prompt's text contains the control token {found[0]}")

    async def _check_format(self, request: ChatRequest) -> None:
        wanted = request.response_format
        if wanted is not None and wanted.type == "json_schema":
            if wanted.json_schema is None:
                raise InvalidInputError("response_format of type json_schema has no json_schema")
            await self._params(Sampling(json_schema=wanted.json_schema.json_schema))

    async def _params(self, sampling: Sampling) -> SamplingParams:
        """A schema or grammar is tried out here: its library may take a while, or refuse it."""
        if not sampling.constrained:
            return sampling_params(sampling)
        params = await asyncio.to_thread(sampling_params, sampling)
        config = self._llm.vllm_config
        model, structured = config.model_config, config.structured_outputs_config
        tokenizer = self._llm.get_tokenizer()
        try:
            await asyncio.to_thread(params.verify, model, None, structured, tokenizer)
        except Exception as error:  # of two libraries; all that they look at is the request's
            name = "grammar" if sampling.grammar is not None else "json_schema"
            raise InvalidInputError(f"vLLM refuses the {name}: {error}") from error
        return params

    async def _render(
        self, messages: Sequence[ChatMessage], images: Sequence[bytes]
    ) -> EngineInput:
        """Tokens and processed images. All of it happens in threads, images one after the other.

        What vLLM has processed has to be handed to `generate` without waiting for anything else:
        an image that comes again is sent as a reference to the request that had it first.
        """
        async with self._pictures.decoded(images) as decoded:
            prompt = await asyncio.to_thread(self._prompt, messages, decoded)
            renderer = self._llm.renderer
            (rendered,) = await renderer.render_cmpl_async(
                [parse_model_prompt(self._llm.model_config, prompt)]
            )
        return rendered

    def _check_picture(self, header: ImageHeader) -> None:
        model, vision = self._settings.model, self._llm.model_config.hf_config.vision_config
        check_fits(
            *header.size,
            factor=vision.patch_size * vision.spatial_merge_size,
            min_pixels=model.min_pixels,
            max_pixels=model.max_pixels,
        )

    def _prompt(
        self, messages: Sequence[ChatMessage], images: Sequence[Image.Image]
    ) -> dict[str, Any]:
        text = self._llm.get_tokenizer().apply_chat_template(
            [message.model_dump() for message in messages],
            chat_template=self._template,
            tokenize=False,
            add_generation_prompt=True,
        )
        return {"prompt": text} | ({"multi_modal_data": {"image": list(images)}} if images else {})

    def _result(self, output: RequestOutput, sampling: Sampling) -> EngineResult:
        tokenizer = self._llm.get_tokenizer()
        completions = [completion(one, sampling, tokenizer) for one in output.outputs]
        return EngineResult(
            prompt_token_ids=list(output.prompt_token_ids),
            completions=completions * (sampling.n // len(completions)),
        )


def served_name(settings: Settings) -> str:
    """The policy's name in OpenAI's API and in metrics: of the hub, or its folder's last part."""
    path = settings.model.path
    return Path(path).absolute().name if Path(path).is_dir() else path


def _start_vllm(settings: Settings) -> AsyncLLM:
    config = engine_args(settings).create_engine_config()
    if current_platform.is_cpu():
        # Forked, as on a GPU: a new interpreter imports all of vLLM once more. The configuration
        # for CPUs says otherwise, for workers that bind their threads to cores.
        set_environment("VLLM_WORKER_MULTIPROC_METHOD", "fork")
    llm = AsyncLLM.from_vllm_config(config)
    if type(llm.engine_core) is AsyncMPClient:
        # vLLM's engine names the class itself.
        llm.engine_core.__class__ = ImagesOnceClient
    return llm


def engine_args(settings: Settings) -> AsyncEngineArgs:
    """What vLLM is started with."""
    model, rollout = settings.model, settings.rollout
    memory: dict[str, Any] = {"gpu_memory_utilization": rollout.gpu_memory_utilization}
    if settings.shares_gpus and not current_platform.is_cpu():
        shapes = _checkpoint_shapes(model.path, download=True).values()
        weights = sum(map(math.prod, shapes)) * getattr(torch, model.dtype).itemsize
        memory = server_memory(settings, current_platform.get_device_total_memory(0), weights)
    if current_platform.is_cpu():
        memory = {
            "kv_cache_memory_bytes": int(rollout.kv_cache_gib * 2**30),
            "block_size": _BLOCK_SIZE,
            "worker_cls": f"{vllm_cpu.__name__}.{vllm_cpu.SeededWorker.__name__}",
        }
    return AsyncEngineArgs(
        model=model.path,
        served_model_name=served_name(settings),
        dtype=model.dtype,
        tensor_parallel_size=rollout.tensor_parallel_size,
        distributed_executor_backend=_executor(rollout.tensor_parallel_size),
        # The second for the language model inside a vision model, where vLLM makes the logits.
        hf_overrides={
            "head_dtype": model.head_dtype,
            "text_config": {"head_dtype": model.head_dtype},
        },
        seed=settings.run.seed,
        max_num_seqs=rollout.max_num_seqs,
        max_model_len=rollout.max_model_len,
        enforce_eager=rollout.enforce_eager,
        limit_mm_per_prompt={"image": rollout.max_images_per_prompt, "video": 0},
        # By these names: vLLM 0.32 lets the checkpoint's own limits win over a `size` given here.
        mm_processor_kwargs={"min_pixels": model.min_pixels, "max_pixels": model.max_pixels},
        # The probabilities that were sampled from: after temperature and suppressed tokens.
        logprobs_mode="processed_logprobs",
        max_logprobs=MAX_LOGPROBS,
        enable_prefix_caching=True,
        generation_config="auto",
        # One library only: what it refuses is refused. Whitespace could go on for ever.
        structured_outputs_config=StructuredOutputsConfig(
            backend="xgrammar", disable_any_whitespace=True
        ),
        disable_log_stats=False,
        worker_extension_cls=f"{vllm_worker.__name__}.WorkerExtension",
        weight_transfer_config=WeightTransferConfig(backend=vllm_worker.BACKEND),
        **lora_args(settings),
        **memory,
    )


def _executor(size: int) -> type[Executor] | None:
    """What runs the workers; None for vLLM's choice, which is the engine's process for one GPU.

    So it is for one worker on a CPU here: vLLM's own choice is another process, for the sake of
    binding threads to cores, which this service turns off.
    """
    if size > 1:
        return TensorParallelExecutor
    return UniProcExecutor if current_platform.is_cpu() else None


def _checkpoint_shapes(path: str, *, download: bool = False) -> dict[str, Shape]:
    """Names and shapes in the model's safetensors; empty where it has none: nothing is checked.

    Args:
        path: A folder, or a hub name.
        download: Whether vLLM has not downloaded that yet.
    """
    folder = Path(path)
    if not folder.is_dir():
        fetch = {"allow_patterns": "*.safetensors"} if download else {"local_files_only": True}
        folder = Path(huggingface_hub.snapshot_download(path, **fetch))
    shapes: dict[str, Shape] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  # not a dict: it has no iterator
                shapes[name] = tuple(tensors.get_slice(name).get_shape())
    return shapes
