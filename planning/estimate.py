"""How much of a GPU's memory a run will need, before it is started.

An upper estimate from shapes and settings: what DeepSpeed keeps, and the largest that a micro
batch can make of it. ZeRO's shares are those of ZeRO (arXiv 1910.02054), section 3; activations
those of a layer with recomputation (arXiv 2205.05198), with grouped queries and a gated MLP.
"""

from planning.shapes import ModelShape
from services.host.gpu import CONTEXT_GIB, GIB
from services.settings import Settings

_MERGE = 4
"""Patches of a visual token."""
_LIVE_PARAMETERS = 10**9
"""Parameters that ZeRO-3 gathers at one time: DeepSpeed's `stage3_max_live_parameters`."""
_TILE = (4096, 32768)
"""Tokens and names of the vocabulary whose logits TRL computes at one time."""
_BUCKET_PARAMETERS = 5 * 10**8
"""In flight between ranks, both ways: DeepSpeed's default buckets."""


def estimate_memory(settings: Settings, shape: ModelShape) -> dict[str, float]:
    """Estimate the memory of one trainer GPU at its fullest.

    Args:
        settings: The run's settings.
        shape: Its model's shape.

    Returns:
        GiB by what holds them.
    """
    tokens = max(settings.trainer.tokens_per_micro_batch, settings.rollout.max_model_len)
    image_tokens = settings.model.max_pixels / shape.patch_size**2 / _MERGE
    images = max(1.0, tokens / (image_tokens + settings.sampling.max_tokens))
    zero = settings.deepspeed
    step = {
        "activations": _activations(settings, shape, tokens=tokens, images=images),
        # In float32 from the product on, or from the softmax on: the same at its fullest.
        "logits of a chunk": 3 * 4 * settings.trainer.logprob_chunk * shape.vocab_size,
        "head's gradient": _head_gradient(settings, shape),
        "float32 head": _float32_head(settings, shape),
    }
    # Over `ipc` servers read a whole version on this GPU, between two steps.
    version = version_bytes(settings, shape)
    states = _model_states(settings, shape)
    has_reference = bool(settings.algorithm.beta) and not settings.lora.rank
    parts = {
        **states,
        "reference model": _weights(settings, shape) * has_reference,
        "export": zero.export_bucket_gib * GIB * (zero.zero_stage == 3),
        **step,
        "version over a step": max(0, version - sum(step.values()))
        * settings.weights.traits.same_gpu,
        "context": CONTEXT_GIB * GIB,
    }
    gib = {name: size / GIB for name, size in parts.items() if size}
    memory = settings.cluster.gpu_memory_gib
    if settings.shares_gpus and memory is not None:
        gib["rollout server"] = settings.rollout.gpu_memory_utilization * memory
    return gib


def estimate_sft_memory(settings: Settings, shape: ModelShape) -> dict[str, float]:
    """Estimate the same where SFT trains, with rows of `rollout.max_model_len` tokens.

    TRL computes the logits in tiles, and their gradient as `trainer.algorithms` does.
    """
    rows, length = settings.sft.micro_batch_size, settings.rollout.max_model_len
    tile = min(_TILE[0], rows * length) * min(_TILE[1], shape.vocab_size)
    parts = {
        **_model_states(settings, shape),
        "activations": _activations(settings, shape, tokens=rows * length, images=rows),
        "attention mask": rows * length**2,
        "logits of a tile": weight_bytes(settings) * tile,
        "head's gradient": _head_gradient(settings, shape),
        "context": CONTEXT_GIB * GIB,
    }
    return {name: size / GIB for name, size in parts.items() if size}


def _head_gradient(settings: Settings, shape: ModelShape) -> float:
    """Bytes of its sum over chunks, in float32, and of the rounded sum."""
    if settings.trainer.freeze_language_model or settings.lora.rank:
        return 0.0
    return float((4 + weight_bytes(settings)) * shape.vocab_size * shape.hidden_size)


def _float32_head(settings: Settings, shape: ModelShape) -> float:
    """Bytes of the copy that a micro batch's backward pass waits with."""
    copied = settings.trainer.float32_head and settings.model.dtype == "bfloat16"
    return 4.0 * shape.vocab_size * shape.hidden_size * copied


def num_trainable(settings: Settings, shape: ModelShape) -> int:
    """Parameters that the optimizer knows."""
    trainer, lora = settings.trainer, settings.lora
    if lora.rank:  # two factors beside each of a layer's seven matrices, none wider than the MLP
        widths = 11 * shape.hidden_size + 3 * shape.intermediate_size
        return lora.rank * widths * shape.num_layers
    return (
        (0 if trainer.freeze_vision_tower else shape.tower)
        + (0 if trainer.freeze_projector else shape.projector)
        + (0 if trainer.freeze_language_model else shape.language)
    )


def _model_states(settings: Settings, shape: ModelShape) -> dict[str, float]:
    """Bytes of weights, gradients, optimizer and communication."""
    zero, ranks = settings.deepspeed, settings.trainer.num_ranks
    size = weight_bytes(settings)
    trainable = num_trainable(settings, shape)
    # Master weights where training is in bfloat16, and Adam's two moments, in float32.
    optimizer = (12 if size == 2 else 8) * trainable / (ranks if zero.zero_stage else 1)
    sharded = zero.zero_stage == 3
    return {
        "weights": 0.0 if zero.offload_parameters else _weights(settings, shape),
        "weights gathered": size * min(_LIVE_PARAMETERS, shape.num_parameters) * sharded,
        "gradients": size * trainable / (ranks if zero.zero_stage >= 2 else 1),
        "optimizer": 0.0 if zero.offload_optimizer else optimizer,
        "communication": 2.0 * size * min(_BUCKET_PARAMETERS, trainable) * (ranks > 1),
    }


def _weights(settings: Settings, shape: ModelShape) -> float:
    """Bytes of a rank's part of the weights."""
    ranks = settings.trainer.num_ranks if settings.deepspeed.zero_stage == 3 else 1
    return weight_bytes(settings) * shape.num_parameters / ranks


def weight_bytes(settings: Settings) -> int:
    """Bytes of a weight."""
    return 2 if settings.model.dtype == "bfloat16" else 4


def version_bytes(settings: Settings, shape: ModelShape) -> int:
    """Bytes of what is sent to a server."""
    return weight_bytes(settings) * num_trainable(settings, shape)


def _activations(settings: Settings, shape: ModelShape, *, tokens: int, images: float) -> float:
    """Bytes that the backward pass needs, of a micro batch of so many tokens and images."""
    size = weight_bytes(settings)
    patches_of_image = settings.model.max_pixels / shape.patch_size**2
    text = _layers(shape.hidden_size, shape.intermediate_size, shape.num_layers, settings)
    vision = _layers(
        shape.vision_hidden_size, 4 * shape.vision_hidden_size, shape.vision_layers, settings
    )
    sees_gradient = settings.trainer.vision_trained and not settings.lora.rank
    return size * (tokens * text + images * patches_of_image * vision * sees_gradient)


def _layers(hidden: int, inner: int, layers: int, settings: Settings) -> float:
    """Numbers kept for a token by all layers: inputs alone where they are computed again."""
    within = 8 * hidden + 4 * inner
    if settings.trainer.gradient_checkpointing:
        return layers * hidden + 2 * within
    return layers * within
