"""How much memory a rank of the trainer will need, before it is started.

An upper estimate from shapes and settings: what DeepSpeed keeps between steps, and the fullest of
the moments of a step. ZeRO's shares are those of ZeRO (arXiv 1910.02054), section 3; activations
those of a layer with recomputation (arXiv 2205.05198), with grouped queries and a gated MLP. What
DeepSpeed 0.19 takes beside that is what `sgg-rl rehearse` measures: `docs/training.md` compares.
"""

from planning.shapes import ModelShape
from services.host.gpu import CONTEXT_GIB, GIB
from services.settings import Settings
from services.settings.checks import num_micro_batches

_MERGE = 4
"""Patches of a visual token."""
_LIVE_PARAMETERS = 10**9
"""Parameters that ZeRO-3 gathers at one time: DeepSpeed's `stage3_max_live_parameters`."""
_TILE = (4096, 32768)
"""Tokens and names of the vocabulary whose logits TRL computes at one time."""
_BUCKET_PARAMETERS = 2 * 10**8
"""Whose gradients are reduced together: as `trainer.policy.deepspeed.config` sets it."""
_HOST_GIB = 0.75
"""What Python and its libraries take of a process on a CPU, in place of CUDA's context."""

Parts = dict[str, float]
"""Bytes, or GiB, by what holds them"""


def estimate_memory(settings: Settings, shape: ModelShape, *, on_gpu: bool = True) -> Parts:
    """Estimate the memory of one rank at its fullest.

    Args:
        settings: The run's settings.
        shape: Its model's shape.
        on_gpu: Of its GPU's memory; else that of its process, which trains on a CPU.

    Returns:
        GiB by what holds them.
    """
    trainer, sampling = settings.trainer, settings.sampling
    groups = trainer.groups_per_step // trainer.num_ranks // settings.algorithm.num_mini_batches
    of_all = groups * _group_tokens(settings)
    tokens = max(settings.rollout.max_model_len, min(trainer.tokens_per_micro_batch, of_all))
    image_tokens = settings.model.max_pixels / shape.patch_size**2 / _MERGE
    images = min(groups, max(1.0, tokens / (image_tokens + sampling.max_tokens)))
    scored = min(trainer.logprob_chunk, tokens, groups * trainer.group_size * sampling.max_tokens)
    step = _Step(settings, shape, on_gpu=on_gpu)
    kept = _kept(settings, shape, tokens=tokens, images=images)
    kept["float32 head"] = _float32_head(settings, shape)
    heads = step.heads(scored * shape.vocab_size)
    several = of_all > trainer.tokens_per_micro_batch
    moments = step.moments(kept, heads, tokens=tokens, images=images, several=several)
    moments.append(_publishing(settings, shape))
    has_reference = bool(settings.algorithm.beta) and not settings.lora.rank
    parts = {
        **step.states(),
        "reference model": _weights(settings, shape) * has_reference,
        **_fullest(moments),
    }
    gib = {name: size / GIB for name, size in parts.items() if size}
    memory = settings.cluster.gpu_memory_gib
    if on_gpu and settings.shares_gpus and memory is not None:
        gib["rollout server"] = settings.rollout.gpu_memory_utilization * memory
    return gib


def estimate_sft_memory(settings: Settings, shape: ModelShape, *, on_gpu: bool = True) -> Parts:
    """Estimate the same where SFT trains, with rows of `rollout.max_model_len` tokens.

    TRL computes the logits in tiles, and their gradient as `trainer.algorithms` does.
    """
    rows, length = settings.sft.micro_batch_size, settings.rollout.max_model_len
    tile = min(_TILE[0], rows * length) * min(_TILE[1], shape.vocab_size)
    step = _Step(settings, shape, on_gpu=on_gpu)
    kept = _kept(settings, shape, tokens=rows * length, images=rows)
    kept["attention mask"] = rows * length**2
    head = {
        "logits of a tile": float(weight_bytes(settings) * tile),
        "head's gradient": step.head_gradient(),
    }
    several = num_micro_batches(settings) > 1
    moments = step.moments(kept, [head], tokens=rows * length, images=rows, several=several)
    parts = {**step.states(), **_fullest(moments)}
    return {name: size / GIB for name, size in parts.items() if size}


class _Step:
    """Bytes of one rank: what stays from step to step, and each moment of a step."""

    def __init__(self, settings: Settings, shape: ModelShape, *, on_gpu: bool) -> None:
        self._settings, self._shape, self._on_gpu = settings, shape, on_gpu
        self._size = weight_bytes(settings)
        self._trainable = num_trainable(settings, shape)
        self._stage = settings.deepspeed.zero_stage
        ranks = settings.trainer.num_ranks
        self._share = self._trainable / (ranks if self._stage else 1)
        """Parameters whose optimizer state is this rank's"""

    def states(self) -> Parts:
        """Weights, master weights and Adam's moments; and what no tensor of the run is in."""
        zero, shape = self._settings.deepspeed, self._shape
        # Only torch's own optimizer, at stage 0 in float32, has no float32 copy of the weights.
        numbers = 2 if self._stage == 0 and self._size == 4 else 3
        live = self._size * min(_LIVE_PARAMETERS, shape.num_parameters)
        return {
            "weights": 0.0 if zero.offload_parameters else _weights(self._settings, shape),
            "weights gathered": live * (self._stage == 3),
            "optimizer": 0.0 if zero.offload_optimizer else 4 * numbers * self._share,
            "context": (CONTEXT_GIB if self._on_gpu else _HOST_GIB) * GIB,
        }

    def moments(
        self, kept: Parts, heads: list[Parts], *, tokens: int, images: float, several: bool
    ) -> list[Parts]:
        """What is there beside the states, at each moment that may be the fullest.

        Args:
            kept: What the forward pass keeps for the backward pass.
            heads: Logits and what is made of them, at each moment of the head's.
            tokens: Of a micro batch.
            images: Of a micro batch.
            several: Whether a step has more than one micro batch, so that sums of gradients are
                there from the start.
        """
        sums = self._sums()
        held = {
            "gradients": sums if several else 0.0,
            "communication": self._buckets() * self._on_gpu,
        }
        layer = {"a layer's activations": _within(self._settings, self._shape, tokens, images)}
        return [
            *({**held, **kept, **head} for head in heads),
            {**held, **kept, **layer, "head's gradient": self._vocabulary() * self._size},
            self._reduction(several),
            {"gradients": sums, "optimizer's step": self._optimizer_step()},
        ]

    def _sums(self) -> float:
        """Bytes of the sums of gradients over micro batches, in float32 from stage 1 on."""
        if self._stage == 0:
            return self._size * self._trainable
        if self._stage == 3 and self._settings.deepspeed.offload_optimizer:
            return 0.0  # the host has them
        return 4 * (self._share if self._stage >= 2 else self._trainable)

    def _buckets(self) -> float:
        """Bytes in which gradients are sent together.

        On a GPU they are allocated for the whole pass, twice, since they are sent while the next
        ones come; on a CPU they are there as far as they are written.
        """
        if self._stage == 0:
            return 0.0
        if self._on_gpu:
            return 2.0 * self._size * _BUCKET_PARAMETERS
        return self._size * min(_BUCKET_PARAMETERS, self._trainable - self._alone())

    def _alone(self) -> int:
        """Parameters of the tensor whose gradient is larger than a bucket, and sent by itself."""
        vocabulary = self._vocabulary()
        return vocabulary if vocabulary > _BUCKET_PARAMETERS else 0

    def _reduction(self, several: bool) -> Parts:
        """The moment in which the last gradients are reduced and added to their sums.

        In bfloat16 a reduction has a copy of what is sent, and one in float32 of a tensor; at stage
        3 a whole copy in float32. In float32, at stage 1 and 2, a micro batch's gradients are apart
        from their sums.
        """
        sums, alone = self._sums(), self._alone()
        on_their_way = self._buckets() + self._size * alone
        sent = max(alone, min(_BUCKET_PARAMETERS, self._trainable))
        if self._stage == 3:
            on_their_way += 4 * sent
        elif self._stage and self._size == 2:
            on_their_way += self._size * sent + 4 * self._vocabulary()
        elif self._stage and several:
            sums *= 2
        return {"gradients": sums, "communication": on_their_way}

    def _optimizer_step(self) -> float:
        """Bytes of the norm, which takes a tensor in float64; or of a copy of the gradients."""
        if self._stage == 0:
            return 0.0 if self._size == 4 else 2.0 * 4 * self._trainable
        norm = 8 * min(self._vocabulary(), self._share)
        # In bfloat16 the sums of stage 2 lie one after the other, as the optimizer wants them.
        copied = 4 * self._share if self._stage == 3 or self._size == 4 else 0.0
        return norm if self._settings.deepspeed.offload_optimizer else max(norm, copied)

    def heads(self, logits: int) -> list[Parts]:
        """The moments of a chunk of so many logits: their softmax, its gradient, the weight's.

        In float32; the last product is in the model's type (`trainer.algorithms.logprobs`).
        """
        return [
            {"logits of a chunk": 3 * 4.0 * logits},
            {"logits of a chunk": 2 * 4.0 * logits, "head's gradient": 4 * self._vocabulary()},
            {
                "logits of a chunk": self._size * logits,
                "head's gradient": self.head_gradient(),
            },
        ]

    def head_gradient(self) -> float:
        """Bytes of its sum over chunks, in float32, and of a chunk's part or the rounded sum."""
        return (4 + self._size) * self._vocabulary()

    def _vocabulary(self) -> int:
        """Parameters of the head, the largest tensor; 0 where it is not trained."""
        if self._settings.trainer.freeze_language_model or self._settings.lora.rank:
            return 0
        return self._shape.vocab_size * self._shape.hidden_size


def _publishing(settings: Settings, shape: ModelShape) -> Parts:
    """The moment between two steps: over `ipc` servers read a whole version on this GPU."""
    version = version_bytes(settings, shape)
    if settings.weights.traits.same_gpu:
        return {"version": version}
    bucket = settings.deepspeed.export_bucket_gib * GIB
    return {"export": min(version, bucket) * (settings.deepspeed.zero_stage == 3)}


def _fullest(moments: list[Parts]) -> Parts:
    return max(moments, key=lambda parts: sum(parts.values()))


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


def _group_tokens(settings: Settings) -> int:
    """Tokens of the longest sequence: a prompt with all completions of its group."""
    others = (settings.trainer.group_size - 1) * settings.sampling.max_tokens
    return settings.rollout.max_model_len + others


def _kept(settings: Settings, shape: ModelShape, *, tokens: int, images: float) -> Parts:
    """Bytes that the forward pass of a micro batch keeps for the backward pass.

    Of a layer that is computed again they are its inputs.
    """
    text, vision = _of_layer(shape.hidden_size, shape.intermediate_size), _of_vision(shape)
    if settings.trainer.gradient_checkpointing:
        text, vision = shape.hidden_size, shape.vision_hidden_size
    of_tower = shape.vision_layers * vision * _patches(settings, shape, images)
    numbers = tokens * shape.num_layers * text + of_tower
    return {"activations": weight_bytes(settings) * numbers}


def _within(settings: Settings, shape: ModelShape, tokens: int, images: float) -> float:
    """Bytes of a layer that is computed again, and of its gradients, where that is done."""
    text = tokens * _of_layer(shape.hidden_size, shape.intermediate_size)
    vision = _patches(settings, shape, images) * _of_vision(shape)
    times = 2 if settings.trainer.gradient_checkpointing else 1
    return times * weight_bytes(settings) * max(text, vision)


def _patches(settings: Settings, shape: ModelShape, images: float) -> float:
    """Whose activations are kept: none where no gradient goes through the tower."""
    sees_gradient = settings.trainer.vision_trained and not settings.lora.rank
    return images * settings.model.max_pixels / shape.patch_size**2 * sees_gradient


def _of_vision(shape: ModelShape) -> int:
    return _of_layer(shape.vision_hidden_size, 4 * shape.vision_hidden_size)


def _of_layer(hidden: int, inner: int) -> int:
    """Numbers that a layer keeps for each token."""
    return 8 * hidden + 4 * inner
