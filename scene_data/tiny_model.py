"""A tiny Qwen2.5-VL with random weights: the real architecture, small enough to train on a CPU.

transformers, DeepSpeed and vLLM load its folder as they load Qwen's own. It has 1.5 million
parameters and a vocabulary of 512.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scene_data.templates import answer_text, prompt_messages
from scene_data.toy import SIDE, toy_scene
from services.schemas.common import TextPart

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
    seed: int = 0,
    min_pixels: int = 4 * 28 * 28,
    max_pixels: int = 512 * 28 * 28,
) -> None:
    """Write config, weights (float32 safetensors), tokenizer, chat template and image processor.

    Args:
        folder: Made where missing.
        seed: Of the weights; the tokenizer is always the same.
        min_pixels: Smaller images are enlarged by the processor.
        max_pixels: Larger images are reduced.
    """
    import torch
    from transformers import GenerationConfig, Qwen2_5_VLForConditionalGeneration

    tokenizer = _tokenizer()
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(_config(tokenizer)).float()
    model.generation_config = GenerationConfig(
        do_sample=True,
        eos_token_id=tokenizer.convert_tokens_to_ids("<|im_end|>"),
        pad_token_id=tokenizer.convert_tokens_to_ids("<|endoftext|>"),
    )
    model.save_pretrained(folder)
    _processor(tokenizer, min_pixels, max_pixels).save_pretrained(folder)


def _config(tokenizer: Any) -> Any:
    from transformers import Qwen2_5_VLConfig

    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": VOCAB_SIZE,
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": MAX_POSITIONS,
            # sections: time, height, width; together half of a head's 32 dimensions
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10_000.0,
                "mrope_section": [4, 6, 6],
            },
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
        },
        vision_config={
            "depth": 2,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_heads": 4,
            "out_hidden_size": 128,
            "fullatt_block_indexes": [0, 1],
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )


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
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL_TOKENS[1:]),
        chat_template=CHAT_TEMPLATE,
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
    )


def _corpus() -> Iterator[str]:
    """Toy prompts and answers, which get whole-phrase tokens, and English, which gets syllables."""
    parts = prompt_messages("toy", "relative_1000")[0].content
    prompt = "".join(part.text for part in parts if isinstance(part, TextPart))
    for index in range(NUM_CORPUS_SCENES):
        graph = toy_scene(0, index, heldout=False)
        yield answer_text(graph, "relative_1000", width=SIDE, height=SIDE)
        yield "user\nassistant\n" + prompt
    for _ in range(NUM_CORPUS_SCENES // 5):
        yield from _ENGLISH.splitlines()


def _processor(tokenizer: Any, min_pixels: int, max_pixels: int) -> Any:
    from transformers import (
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessorPil,
        Qwen2VLVideoProcessor,
    )

    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessorPil(min_pixels=min_pixels, max_pixels=max_pixels),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(),
        chat_template=CHAT_TEMPLATE,
    )
