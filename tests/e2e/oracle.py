"""transformers with the same weights, which a rollout server's answers are held against."""

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from services.images import decode_image
from services.schemas.common import ChatMessage, ImagePart, Sampling, TextPart
from services.schemas.rollouts import (
    Completion,
    InlineImage,
    RolloutRequest,
    RolloutResponse,
)
from services.settings import Settings
from trainer.policy.model import load_processor

TOLERANCE = 2e-2 if torch.cuda.is_available() else 2e-3
"""Between log-probabilities in float32: both sum in other orders, and on a GPU by other kernels."""
SUPPRESSED = list(range(8))
"""All special tokens: also the end, so that lengths are known."""


def messages(num_images: int = 1) -> list[ChatMessage]:
    text = TextPart(text="Write the scene graph.")
    return [ChatMessage(role="user", content=[*[ImagePart()] * num_images, text])]


def picture(seed: int, side: int = 112) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def data_uri(image: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(image).decode()}"


def request(*images: bytes, adapter: str | None = None, **sampling: Any) -> RolloutRequest:
    options = {"max_tokens": 24, "suppress_token_ids": SUPPRESSED} | sampling
    return RolloutRequest(
        messages=messages(len(images)),
        images=[InlineImage(data=data_uri(image)) for image in images],
        sampling=Sampling.model_validate(options),
        adapter=adapter,
    )


class Oracle:
    """transformers on the same weights, with the processor that the trainer would load."""

    def __init__(self, settings: Settings, noise: float = 0.0, seed: int = 1) -> None:
        self.processor: Any = load_processor(settings)
        self.model: Any = AutoModelForImageTextToText.from_pretrained(
            settings.model.path, dtype=torch.float32
        ).eval()
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter += noise * torch.randn(parameter.shape, generator=generator)

    def inputs(self, images: bytes | Sequence[bytes]) -> Any:
        files = [images] if isinstance(images, bytes) else list(images)
        chat = [message.model_dump() for message in messages(len(files))]
        text = self.processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        opened = [decode_image(file) for file in files]
        return self.processor(text=[text], images=opened, return_tensors="pt")

    def logprobs(
        self,
        images: bytes | Sequence[bytes],
        token_ids: list[int],
        temperature: float = 1.0,
        suppressed: Sequence[int] = SUPPRESSED,
    ) -> torch.Tensor:
        """[L, vocabulary]: what each token of a completion was to be sampled from."""
        inputs = dict(self.inputs(images))
        extra = torch.tensor([token_ids])
        inputs["input_ids"] = torch.cat([inputs["input_ids"], extra], 1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        if "mm_token_type_ids" in inputs:
            zeros = torch.zeros_like(extra)
            inputs["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], zeros], 1)
        with torch.no_grad():
            logits = self.model(**inputs).logits[0, -len(token_ids) - 1 : -1].float()
        logits = logits / temperature
        logits[:, list(suppressed)] = -torch.inf
        return torch.log_softmax(logits, -1)

    def of(
        self, images: bytes | Sequence[bytes], completion: Completion, temperature: float = 1.0
    ) -> torch.Tensor:
        """[L] of the tokens that were sampled."""
        table = self.logprobs(images, completion.token_ids, temperature)
        return table.gather(1, torch.tensor(completion.token_ids)[:, None])[:, 0]


def largest_gap(oracle: Oracle, images: bytes | Sequence[bytes], answer: RolloutResponse) -> float:
    """The largest gap between an answer's log-probabilities and the oracle's."""
    gaps = [
        (torch.tensor(completion.rollout_logprobs) - oracle.of(images, completion)).abs().max()
        for completion in answer.completions
    ]
    return max(float(gap) for gap in gaps)
