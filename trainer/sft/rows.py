"""A dataset's graphs as chats with an answer, and batches of them."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from PIL.Image import Image
from torch import Tensor
from torch.utils.data import Sampler

from scene_data.dataset import (
    MAX_BROKEN_ROWS,
    MAX_BROKEN_SHARE,
    Sample,
    SceneDataset,
    UnusableRowError,
)
from scene_data.messages import box_space, image_messages
from scene_data.sampler import EpochSampler, shuffled_graph
from scene_data.templates import answer_text
from services.errors import InvalidInputError, TooLargeError
from services.images import decode_image
from services.settings import Settings
from trainer.batches.images import ImageCheck

logger = logging.getLogger(__name__)

IGNORED = -100
"""Label of tokens without loss, as torch's cross entropy wants it."""


class AnswerRows(Sampler[int]):  # type: ignore[misc]
    """Rows `{"image": RGB image, "messages": chat, "answer": target text}`, and their order.

    Both are pure functions of (seed, `epoch`), so a resumed run sees what an uninterrupted one
    does. A row that cannot be used is replaced by the next one: of those whose image is at fault
    only `max(MAX_BROKEN_ROWS, MAX_BROKEN_SHARE * rows)`.

    Args:
        dataset: The run's.
        settings: The run's.
        image_check: Without it images may have more pixels than `model.max_pixels`.

    Raises:
        InvalidInputError: No image can be used, as with a wrong path to them.
    """

    def __init__(
        self, dataset: SceneDataset, settings: Settings, image_check: ImageCheck | None = None
    ) -> None:
        self.epoch = 0
        """Counted from 0; whoever trains sets it."""
        self._dataset = dataset
        self._settings = settings
        self._image_check = image_check
        self._broken: set[int] = set()
        allowed = max(MAX_BROKEN_ROWS, int(MAX_BROKEN_SHARE * len(dataset)))
        self._max_broken = min(allowed, len(dataset) - 1)
        self._usable_row(0)  # a wrong path to the images is found before the model is loaded

    def __len__(self) -> int:
        return len(self._dataset)

    def __iter__(self) -> Iterator[int]:
        order = EpochSampler(len(self), self._settings.run.seed)
        start = self.epoch * len(self)
        return (order.at(start + i)[1] for i in range(len(self)))

    def table(self) -> Dataset:
        """Row numbers with a transform that makes the rows when they are asked for.

        `SFTTrainer` takes nothing but a `datasets.Dataset`, and the images stay where they are.
        """

        def rows(batch: dict[str, list[int]]) -> dict[str, list[Any]]:
            made = [self._usable_row(index) for index in batch["row"]]
            return {key: [row[key] for row in made] for key in made[0]}

        return Dataset.from_dict({"row": range(len(self))}).with_transform(rows)

    def _usable_row(self, index: int) -> dict[str, Any]:
        while True:
            try:
                return self._answer_row(index)
            except UnusableRowError as error:
                logger.warning("row %d is replaced by the next one: %s", index, error)
            except InvalidInputError as error:
                if index not in self._broken:
                    logger.warning("row %d is replaced by the next one: %s", index, error)
                self._broken.add(index)
                if len(self._broken) > self._max_broken:
                    raise InvalidInputError(
                        f"{len(self._broken)} rows have no usable image; the last: {error}"
                    ) from error
            index = (index + 1) % len(self)

    def _answer_row(self, index: int) -> dict[str, Any]:
        sample = self._dataset[index]
        data = self._settings.data
        space = box_space(self._settings.model, sample)
        return {
            "image": self._picture(sample),
            "messages": [message.model_dump() for message in image_messages(data, space)],
            "answer": answer_text(
                self._graph(sample, index),
                space,
                width=sample.width,
                height=sample.height,
                thinking=sample.thinking,
                task=data.task,
                notation=data.notation,
            ),
        }

    def _picture(self, sample: Sample) -> Image:
        try:
            if self._image_check is not None:
                self._image_check.header(sample.image_bytes)
            return decode_image(sample.image_bytes)
        except (InvalidInputError, TooLargeError) as error:
            raise InvalidInputError(f"image {sample.image_id}: {error.message}") from error

    def _graph(self, sample: Sample, index: int) -> Any:
        if not self._settings.sft.shuffle_graph:
            return sample.graph
        return shuffled_graph(
            sample.graph, seed=self._settings.run.seed, epoch=self.epoch, row=index
        )


@dataclass(frozen=True, slots=True)
class AnswerCollator:
    """Rows to a batch of B sequences, padded on the right to S tokens."""

    processor: Any

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """input_ids, attention_mask, mm_token_type_ids, labels [B, S]; the images' patches."""
        template = self.processor.apply_chat_template
        prompts = self.processor(
            text=[template(row["messages"], add_generation_prompt=True) for row in rows],
            images=[row["image"] for row in rows],
        )
        answers = [self._answer(row["answer"]) for row in rows]
        pairs = list(zip(prompts["input_ids"], answers, strict=True))
        pad = self.processor.tokenizer.pad_token_id
        input_ids = _padded([[*prompt, *answer] for prompt, answer in pairs], pad)
        return {
            "input_ids": input_ids,
            "attention_mask": _padded([[1] * (len(p) + len(a)) for p, a in pairs], 0),
            "mm_token_type_ids": (input_ids == self.processor.image_token_id).long(),
            "labels": _padded([[IGNORED] * len(p) + a for p, a in pairs], IGNORED),
            "pixel_values": torch.as_tensor(prompts["pixel_values"]),
            "image_grid_thw": torch.as_tensor(prompts["image_grid_thw"]),
        }

    def _answer(self, text: str) -> list[int]:
        tokenizer = self.processor.tokenizer
        return [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]


def _padded(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    tensors = [torch.tensor(row) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=value)
