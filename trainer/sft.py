"""Supervised fine-tuning on a dataset's own graphs, with TRL: where a GRPO run starts from.

The loss is on the answer and its end token only. Prompt and answer are tokenised apart, as they are
in sampling, so both stages see the same token ids. Answers are never cut: a cut one would teach the
model to stop inside its JSON.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from PIL import Image
from torch import Tensor
from transformers import PrinterCallback, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint
from trl import SFTConfig, SFTTrainer

from scene_data.dataset import Sample, SceneDataset, open_dataset
from scene_data.templates import answer_text, prompt_messages
from scene_data.wire import box_space
from services.settings import Settings
from trainer.model import load_model, load_processor

logger = logging.getLogger(__name__)

IGNORED = -100
"""Label of tokens without loss, as torch's cross entropy wants it."""
LOG_EVERY = 20


def run_sft(settings: Settings, *, resume: bool = False) -> Path:
    """Train `model.path` on `data.train` as `[sft]` says.

    Args:
        settings: Of the run. The `trainer.freeze_*` flags hold here too.
        resume: Continue from the run's last checkpoint, if there is one.

    Returns:
        The trained model's folder (`<run folder>/model`), in Hugging Face's format.

    Raises:
        InvalidInputError: The dataset is not usable.
        SettingsError: `model.path` cannot be loaded.
    """
    processor = load_processor(settings)
    checkpoint = _last_checkpoint(settings) if resume else None
    trainer = _Trainer(
        model=load_model(_starting_from(checkpoint, settings)),
        args=_arguments(settings),
        train_dataset=answer_rows(open_dataset(settings.data.train), settings),
        data_collator=AnswerCollator(processor),
        processing_class=processor,
        callbacks=[_Progress()],
    )
    trainer.remove_callback(PrinterCallback)  # prints every log a second time
    trainer.train(resume_from_checkpoint=checkpoint)
    folder = settings.run.folder / "model"
    if trainer.is_world_process_zero():
        trainer.accelerator.unwrap_model(trainer.model).save_pretrained(folder)
        processor.save_pretrained(folder)
        logger.info("model written to %s", folder)
    return folder


def answer_rows(dataset: SceneDataset, settings: Settings) -> Any:
    """Rows `{"image": encoded file, "messages": chat, "answer": target text}`, made when asked for.

    A table of row numbers with a transform: `SFTTrainer` takes nothing but a `datasets.Dataset`,
    and the images stay where they are.
    """

    def rows(batch: dict[str, list[int]]) -> dict[str, list[Any]]:
        made = [_answer_row(dataset[index], settings) for index in batch["row"]]
        return {key: [row[key] for row in made] for key in made[0]}

    return Dataset.from_dict({"row": range(len(dataset))}).with_transform(rows)


def _answer_row(sample: Sample, settings: Settings) -> dict[str, Any]:
    space = box_space(settings.model, sample)
    messages = prompt_messages(settings.data.template, space, settings.data.vocabulary)
    return {
        "image": sample.image_bytes,
        "messages": [message.model_dump() for message in messages],
        "answer": answer_text(sample.graph, space, width=sample.width, height=sample.height),
    }


@dataclass(frozen=True, slots=True)
class AnswerCollator:
    """Rows to a batch of B sequences, padded on the right to S tokens."""

    processor: Any

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """input_ids, attention_mask, mm_token_type_ids, labels [B, S]; the images' patches."""
        prompts = self.processor(
            text=[self._prompt(row["messages"]) for row in rows],
            images=[Image.open(BytesIO(row["image"])).convert("RGB") for row in rows],
        )
        answers = [self._answer(row["answer"]) for row in rows]
        length = max(len(p) + len(a) for p, a in zip(prompts["input_ids"], answers, strict=True))
        pad = self.processor.tokenizer.pad_token_id
        input_ids = torch.full((len(rows), length), pad, dtype=torch.long)
        attention_mask = torch.zeros_like(input_ids)
        labels = torch.full_like(input_ids, IGNORED)
        for i, (prompt, answer) in enumerate(zip(prompts["input_ids"], answers, strict=True)):
            start, end = len(prompt), len(prompt) + len(answer)
            input_ids[i, :end] = torch.tensor([*prompt, *answer])
            attention_mask[i, :end] = 1
            labels[i, start:end] = torch.tensor(answer)
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "mm_token_type_ids": (input_ids == self.processor.image_token_id).long(),
            "labels": labels,
            "pixel_values": torch.as_tensor(prompts["pixel_values"]),
            "image_grid_thw": torch.as_tensor(prompts["image_grid_thw"]),
        }

    def _prompt(self, messages: list[dict[str, Any]]) -> str:
        text: str = self.processor.apply_chat_template(messages, add_generation_prompt=True)
        return text

    def _answer(self, text: str) -> list[int]:
        tokenizer = self.processor.tokenizer
        return [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]


class _Trainer(SFTTrainer):  # type: ignore[misc]
    """SFTTrainer whose model already has the checkpoint's weights when training resumes.

    transformers 5.19 would load them by the names in the file, which for Qwen2.5-VL are not those
    of the modules: it warns of missing keys and goes on with the weights of step 0.
    """

    def _load_from_checkpoint(self, *_: Any, **__: Any) -> None:
        """Nothing: `load_model` read the same folder with the names converted."""


class _Progress(TrainerCallback):  # type: ignore[misc]
    """One line every `LOG_EVERY` steps."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if logs and "loss" in logs:
            loss, rate = float(logs["loss"]), float(logs["learning_rate"])
            logger.info(
                "sft step %d/%d loss %.4f lr %.2g", state.global_step, state.max_steps, loss, rate
            )


def _last_checkpoint(settings: Settings) -> str | None:
    folder = _checkpoints(settings)
    found: str | None = get_last_checkpoint(str(folder)) if folder.is_dir() else None
    return found


def _starting_from(checkpoint: str | None, settings: Settings) -> Settings:
    if checkpoint is None:
        return settings
    model = settings.model.model_copy(update={"path": checkpoint})
    return settings.model_copy(update={"model": model})


def _checkpoints(settings: Settings) -> Path:
    return settings.run.folder / "checkpoints"


def _arguments(settings: Settings) -> SFTConfig:
    sft = settings.sft
    return SFTConfig(
        output_dir=str(_checkpoints(settings)),
        max_steps=sft.num_steps or -1,
        num_train_epochs=sft.num_epochs,
        per_device_train_batch_size=sft.micro_batch_size,
        gradient_accumulation_steps=sft.batch_size // sft.micro_batch_size,
        learning_rate=sft.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=sft.warmup_steps,
        adam_beta2=0.95,
        weight_decay=0.01,
        bf16=settings.model.dtype == "bfloat16",
        # Recomputation saves a GPU's memory; on a CPU it only costs time.
        gradient_checkpointing=torch.cuda.is_available(),
        max_length=None,
        seed=settings.run.seed,
        logging_steps=LOG_EVERY,
        save_steps=sft.checkpoint_every,
        save_total_limit=1,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        disable_tqdm=True,
        report_to="none",
    )
