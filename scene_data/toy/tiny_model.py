"""Tiny Qwen models with random weights: the real architectures, small enough to train on a CPU.

transformers, DeepSpeed and vLLM load their folders as they load Qwen's own. Each has one to two
million parameters and a vocabulary of 512.
"""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal

from scene_data.templates import answer_text, prompt_messages
from scene_data.toy.scenes import SIDE, toy_scene
from scene_graph.boxes import RELATIVE_1000
from services.models.families import save_published
from services.schemas.common import TextPart

Family = Literal["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5"]
"""transformers' name of an architecture, as in a checkpoint's `config.json`."""

VOCAB_SIZE = 512
MAX_POSITIONS = 4096
NUM_CORPUS_SCENES = 3000
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
_PLACEHOLDERS = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}
"""Keys of a configuration."""
CHAT_TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message.role + '\n' }}
{%- if message.content is string -%}{{ message.content }}
{%- else -%}
{%- for part in message.content -%}
{%- if part.type == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>
{%- else -%}{{ part.text }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{ '<|im_end|>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}
"""
_ENGLISH = """\
The man is riding a horse on the beach while a woman in a white shirt is holding an umbrella.
A dog sitting on the street behind a car, a tree in front of a building with windows.
people standing next to a table with plates, a boy wearing a hat and looking at the train.
attached to, carrying, covered in, hanging from, looking at, parked on, part of, walking on.
"""


def make_tiny_model(
    folder: Path,
    *,
    family: Family = "qwen2_5_vl",
    seed: int = 0,
    min_pixels: int = 4 * 28 * 28,
    max_pixels: int = 512 * 28 * 28,
    on_stage: Callable[[str], object] = lambda _: None,
) -> None:
    """Write config, weights (float32 safetensors), tokenizer, chat template and image processor.

    Args:
        folder: Made where missing.
        family: The architecture.
        seed: The weights'; the tokenizer is always the same.
        min_pixels: Smaller images are enlarged by the processor.
        max_pixels: Larger images are reduced.
        on_stage: Called with the name of each part of the work as it begins.
    """
    on_stage("loading libraries")
    import torch  # noqa: F401 - it and transformers take seconds
    import transformers  # noqa: F401

    on_stage("training the tokenizer")
    tokenizer = _tokenizer()
    on_stage("writing weights")
    config = _config(family, tokenizer)
    save_random_model(
        folder, config, tokenizer, seed=seed, min_pixels=min_pixels, max_pixels=max_pixels
    )


def save_random_model(
    folder: Path,
    config: Any,
    tokenizer: Any,
    *,
    dtype: str = "float32",
    seed: int = 0,
    min_pixels: int,
    max_pixels: int,
) -> None:
    """Write a whole model folder with random weights, as `make_tiny_model` does.

    Args:
        folder: Made where missing.
        config: transformers' configuration, of one of the families.
        tokenizer: It knows `SPECIAL_TOKENS`, whose ids the configuration gets.
        dtype: The weights'.
        seed: The weights'.
        min_pixels: Smaller images are enlarged by the processor.
        max_pixels: Larger images are reduced.
    """
    import torch
    from transformers import AutoModelForImageTextToText, GenerationConfig
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    ids = _ids(tokenizer)
    for name, token in _PLACEHOLDERS.items():
        setattr(config, name, ids[token])
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(config, dtype=getattr(torch, dtype))
    model.generation_config = GenerationConfig(
        do_sample=True, eos_token_id=ids["<|im_end|>"], pad_token_id=ids["<|endoftext|>"]
    )
    save_published(model, folder, model.state_dict())
    _processor(config.model_type, tokenizer, min_pixels, max_pixels).save_pretrained(folder)


def _ids(tokenizer: Any) -> dict[str, int]:
    return {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}


def _config(family: Family, tokenizer: Any) -> Any:
    from transformers import AutoConfig

    return AutoConfig.for_model(
        family,
        text_config=_text_config(family, _ids(tokenizer)),
        vision_config=_vision_config(family),
        tie_word_embeddings=True,
    )


def _text_config(family: Family, ids: dict[str, int]) -> dict[str, Any]:
    # sections: time, height, width; together half of a head's 32 dimensions
    rope: dict[str, Any] = {"rope_theta": 10_000.0, "mrope_section": [4, 6, 6]}
    own: dict[str, Any] = {}
    if family in ("qwen3_vl", "qwen3_vl_moe"):
        rope |= {"mrope_section": [6, 5, 5], "mrope_interleaved": True}
        own = {"head_dim": 32}
    if family == "qwen3_vl_moe":
        own |= {"num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": True}
        own |= {"moe_intermediate_size": 192}
    if family == "qwen3_5":
        rope |= {"mrope_section": [2, 1, 1], "mrope_interleaved": True}
        rope |= {"partial_rotary_factor": 0.25}
        own = {"head_dim": 32, "linear_num_key_heads": 2, "linear_num_value_heads": 4}
        own |= {"tie_word_embeddings": True}  # vLLM reads it here
        # vLLM's kernel for CPUs takes no smaller ones.
        own |= {"linear_key_head_dim": 64, "linear_value_head_dim": 64}
    return own | {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4 if family == "qwen3_5" else 3,  # of its four one has attention
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": MAX_POSITIONS,
        "rope_parameters": {"rope_type": "default", **rope},
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
    }


def _vision_config(family: Family) -> dict[str, Any]:
    shared = {"depth": 2, "num_heads": 4, "hidden_size": 128}
    if family == "qwen2_vl":  # its `hidden_size` is that of the output
        return shared | {"embed_dim": 128, "mlp_ratio": 2}
    shared |= {"intermediate_size": 256, "out_hidden_size": 128}
    if family == "qwen2_5_vl":
        return shared | {"fullatt_block_indexes": [0, 1]}
    shared |= {"num_position_embeddings": 256}
    return shared if family == "qwen3_5" else shared | {"deepstack_visual_indexes": [0, 1]}


@cache
def _tokenizer() -> Any:
    """Byte-level BPE. Digits and line breaks stand alone: prompt and answer never share a token."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d|\n"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(_corpus(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",  # noqa: S106 - of text
        pad_token="<|endoftext|>",  # noqa: S106 - of text
        additional_special_tokens=list(SPECIAL_TOKENS[1:]),
        chat_template=CHAT_TEMPLATE,
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
    )


def _corpus() -> Iterator[str]:
    """Toy prompts and answers, which get whole-phrase tokens, and English, which gets syllables."""
    parts = prompt_messages("toy", RELATIVE_1000)[0].content
    prompt = "".join(part.text for part in parts if isinstance(part, TextPart))
    for index in range(NUM_CORPUS_SCENES):
        graph = toy_scene(0, index, heldout=False)
        yield answer_text(graph, RELATIVE_1000, width=SIDE, height=SIDE)
        yield "user\nassistant\n" + prompt
    for _ in range(NUM_CORPUS_SCENES // 5):
        yield from _ENGLISH.splitlines()


def _processor(family: str, tokenizer: Any, min_pixels: int, max_pixels: int) -> Any:
    import transformers as hf

    third = (hf.Qwen3VLProcessor, hf.Qwen3VLVideoProcessor, {"patch_size": 16})
    processors = {
        "qwen2_vl": (hf.Qwen2VLProcessor, hf.Qwen2VLVideoProcessor, {}),
        "qwen2_5_vl": (hf.Qwen2_5_VLProcessor, hf.Qwen2VLVideoProcessor, {}),
        "qwen3_vl": third,
        "qwen3_vl_moe": third,
        "qwen3_5": third,
    }
    processor, video_processor, patch = processors[family]
    return processor(
        image_processor=hf.Qwen2VLImageProcessorPil(
            min_pixels=min_pixels, max_pixels=max_pixels, **patch
        ),
        tokenizer=tokenizer,
        video_processor=video_processor(),
        chat_template=CHAT_TEMPLATE,
    )
