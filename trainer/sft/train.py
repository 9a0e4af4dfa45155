"""Supervised fine-tuning on a dataset's own graphs, with TRL: where a GRPO run starts from.

The loss is on the answer and its end token only. Prompt and answer are tokenised apart, as they are
in sampling, so both stages see the same token ids. Answers are never cut: a cut one would teach the
model to stop inside its JSON.
"""

import json
import logging
import math
import time
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PrinterCallback, TrainerCallback
from transformers.integrations.deepspeed import (
    is_deepspeed_zero3_enabled,
    unset_hf_deepspeed_config,
)
from trl import SFTTrainer

from scene_data.templates import check_instruction
from services.models.families import save_published
from services.settings import Settings
from trainer.batches.images import ImageCheck
from trainer.checkpoints.inputs import Inputs, check_inputs, data_inputs
from trainer.not_finite import MAX_SKIPPED, NotFiniteError
from trainer.policy.adapter import lora_config
from trainer.policy.deepspeed.api import forget_gradients
from trainer.policy.engine import init_process_group
from trainer.policy.model import load_model, load_processor
from trainer.ranks.group import Ranks, check_num_ranks
from trainer.ranks.stop import StopRequest
from trainer.ranks.training_rows import open_training_rows
from trainer.records.step_lines import StepLines
from trainer.records.trackers import Trackers
from trainer.sft.arguments import sft_arguments
from trainer.sft.rows import AnswerCollator, AnswerRows

logger = logging.getLogger(__name__)

_INPUTS = "inputs.json"
"""Beside the checkpoints."""


def run_sft(
    settings: Settings,
    *,
    resume: bool = False,
    allow_changes: bool = False,
    stop: StopRequest | None = None,
) -> Path | None:
    """Train `model.path` on `data.train` as `[sft]` says; every rank calls this.

    With `lora.rank`, the run's folder gets the adapter in `adapter` too, and `model` has it merged.

    Args:
        settings: The run's. The `trainer.freeze_*` flags hold here too, and `[deepspeed]`.
        resume: Continue from the run's last checkpoint, if there is one.
        allow_changes: Also with another dataset or instruction.
        stop: This process's; rank 0's counts.

    Returns:
        The trained model's folder (`<run folder>/model`), in Hugging Face's format: what a GRPO
        run's `model.path` names. None if it was asked to stop: its steps are in a checkpoint.

    Raises:
        InvalidInputError: The dataset is not usable.
        SettingsError: `model.path` cannot be loaded, a tracker is not installed, or the checkpoint
            is of another dataset or instruction.
    """
    data = settings.data
    check_instruction(data.template, data.vocabulary, data.notation)
    thinking_column = settings.sft.thinking_column if settings.data.thinking else None
    init_process_group(settings.trainer.wait_timeout_s)
    ranks = Ranks(settings.trainer.wait_timeout_s)
    check_num_ranks(settings.trainer, ranks.size)
    dataset = open_training_rows(ranks, settings.data, thinking_column)
    processor = load_processor(settings)
    rows = AnswerRows(dataset, settings, ImageCheck(processor))
    total = settings.sft.total_steps(len(rows))
    checkpoints = settings.run.files.checkpoints
    checkpoint = _last_checkpoint(checkpoints) if resume else None

    def keep() -> None:
        now = data_inputs(settings, dataset)
        _keep_inputs(checkpoints / _INPUTS, now, checkpoint, allow_changes=allow_changes)

    ranks.from_main(keep, None)
    stop = stop or StopRequest()
    stopping = _StopWhenAsked(stop, ranks)
    trainer = _Trainer(
        rows,
        args=sft_arguments(settings, total_steps=total),
        model=load_model(settings),
        data_collator=AnswerCollator(processor),
        processing_class=processor,
        peft_config=lora_config(settings.lora) if settings.lora.rank else None,
        callbacks=[_Epoch(rows), _SkipsNotFinite(), stopping],
    )
    trainer.remove_callback(PrinterCallback)  # prints every log a second time
    if trainer.is_world_process_zero():
        trainer.add_callback(_Progress(settings))
    with stop.noted():
        trainer.train(resume_from_checkpoint=checkpoint)
    if stopping.stopped:
        return None
    return _save(trainer, processor, settings)


def _save(trainer: "_Trainer", processor: Any, settings: Settings) -> Path:
    """Write `model`, and `adapter` where one was trained; every rank calls it."""
    folder = settings.run.files.model
    weights = None  # the model has them whole
    if is_deepspeed_zero3_enabled():
        weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    model = trainer.accelerator.unwrap_model(trainer.model)
    unset_hf_deepspeed_config()  # or a model loaded from here on would be sharded too
    if not trainer.is_world_process_zero():
        return folder
    if isinstance(model, PeftModel):
        adapter = settings.run.files.adapter
        model.save_pretrained(str(adapter), state_dict=weights)
        logger.info("adapter written to %s", adapter)
        # On a fresh copy: the trained one is on the GPU, perhaps in shards.
        merged = PeftModel.from_pretrained(load_model(settings), adapter).merge_and_unload()
        save_published(merged, folder, merged.state_dict())
    else:
        save_published(model, folder, weights or model.state_dict())
    processor.save_pretrained(folder)
    logger.info("model written to %s", folder)
    return folder


class _Trainer(SFTTrainer):  # type: ignore[misc]
    """SFTTrainer with our order of rows, and a loss that is the mean over a whole step's tokens.

    The order of transformers' own sampler is not the same again when a run of several ranks resumes
    in a later epoch. And without the flag below it would average the means of micro batches and
    ranks, since Qwen's models say that their own loss takes no token count; TRL's, which is the one
    used, does.
    """

    def __init__(self, rows: AnswerRows, **arguments: Any) -> None:
        self._rows = rows
        super().__init__(train_dataset=rows.table(), **arguments)
        self.model_accepts_loss_kwargs = True

    def _get_train_sampler(self, *_: Any, **__: Any) -> AnswerRows:
        return self._rows


class _Epoch(TrainerCallback):  # type: ignore[misc]
    """Tells the rows which epoch it is."""

    def __init__(self, rows: AnswerRows) -> None:
        self._rows = rows

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._rows.epoch = int(state.epoch or 0)


class _StopWhenAsked(TrainerCallback):  # type: ignore[misc]
    """Ends training after a step, with a checkpoint, on every rank at the same one."""

    def __init__(self, stop: StopRequest, ranks: Ranks) -> None:
        self._stop, self._ranks = stop, ranks
        self.stopped = False
        """Before the last step."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        asked = self._ranks.from_main(lambda: self._stop.asked, bool)
        if asked and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = self.stopped = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.stopped:
            self._ranks.barrier()  # each comes here when its own part is written
            self._stop.all_kept(is_done=False)


class _SkipsNotFinite(TrainerCallback):  # type: ignore[misc]
    """Steps whose gradients are not finite change nothing, and end the run where they go on.

    DeepSpeed's own optimizers skip them by themselves; at ZeRO stage 0 in float32 torch's is used,
    which makes no step where there are no gradients.
    """

    def __init__(self) -> None:
        self._in_row = 0
        self._optimizer: Any = None
        self._dropped = False

    def on_train_begin(
        self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any
    ) -> None:
        """Find DeepSpeed's optimizer below accelerate's."""
        self._optimizer = optimizer.optimizer
        if not hasattr(self._optimizer, "overflow"):
            self._optimizer.register_step_pre_hook(self._drop)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """See the class; the same on every rank.

        Raises:
            NotFiniteError: It was one too many.
        """
        skipped = getattr(self._optimizer, "overflow", self._dropped)
        self._in_row = self._in_row + 1 if skipped else 0
        if not skipped:
            return
        forget_gradients(self._optimizer)
        if self._in_row == MAX_SKIPPED:
            raise NotFiniteError(
                f"SFT: loss or gradients were not finite in {MAX_SKIPPED} steps in a row, the last "
                f"of them step {state.global_step}; none of them changed the weights. If those of "
                "model.path are whole, lower sft.learning_rate and go on with --resume"
            )
        if state.is_world_process_zero:
            logger.warning("step %d is skipped: its gradients are not finite", state.global_step)

    def _drop(self, optimizer: Any, *_: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        grads = [p.grad for p in parameters if p.grad is not None]
        self._dropped = not math.isfinite(float(torch.nn.utils.get_total_norm(grads)))
        if self._dropped:
            for parameter in parameters:
                parameter.grad = None


class _Progress(TrainerCallback):  # type: ignore[misc]
    """A line in `metrics.jsonl`, which is shown, and in the trackers, every some steps."""

    def __init__(self, settings: Settings) -> None:
        self._lines = StepLines(settings.run.files.metrics)
        self._trackers = Trackers(settings)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._lines.cut_to(state.global_step + 1)
        self._trackers.start(state.global_step + 1)
        self._started_at, self._first_step = time.monotonic(), state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if not logs or "loss" not in logs:
            return
        step, total = state.global_step, state.max_steps
        step_s = (time.monotonic() - self._started_at) / (step - self._first_step)
        head = {"step": step, "num_steps": total, "epoch": state.epoch, "time": time.time()}
        row = (
            head
            | {"phases_s": {"train": step_s}}
            | {
                # No norm: a step that was skipped.
                name: float(logs.get(name, math.nan))
                for name in ("loss", "grad_norm", "learning_rate")
            }
        )
        self._lines.append(row)
        self._trackers.log(row)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._trackers.close()


def _keep_inputs(file: Path, now: Inputs, checkpoint: str | None, *, allow_changes: bool) -> None:
    """Compare with those of the checkpoint, where one is resumed, and write those of now."""
    if checkpoint is not None and file.exists():
        then: Inputs = json.loads(file.read_text())
        check_inputs(then, now, checkpoint, allow_changes=allow_changes)
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_suffix(".draft")
    draft.write_text(json.dumps(now, indent=1) + "\n")
    draft.replace(file)


def _last_checkpoint(root: Path) -> str | None:
    """The newest complete one: `trainer_state.json` is written last."""
    found = [file.parent for file in root.glob("checkpoint-*/trainer_state.json")]
    newest = max(found, key=lambda folder: int(folder.name.partition("-")[2]), default=None)
    return str(newest) if newest else None
