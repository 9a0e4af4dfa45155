"""TRL's side of `benchmarks/trainer.py`: its GRPOTrainer on given completions."""

import re
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.memory import PeakMemory
from benchmarks.trainer_load import Load, picture, prompt_ids, questions
from benchmarks.trainer_ours import LEARNING_RATE


def run(load: Load, model: Path, steps: int, dtype: str, checkpointing: bool) -> dict[str, Any]:
    """Train on the load; one step first that is not counted.

    Sampling is replaced by `rollout_func`, TRL's own way; prompts, images, scoring, loss, backward
    pass and optimizer are its own. Its learning rate is ours, so the first step is the same.

    Returns:
        As `benchmarks.trainer_ours.run`.
    """
    from transformers import AutoProcessor
    from trl import GRPOConfig, GRPOTrainer

    width, height = load.image
    processor = AutoProcessor.from_pretrained(
        model,
        padding_side="left",
        size={"shortest_edge": width * height // 2, "longest_edge": 2 * width * height},
    )
    cpu = not torch.cuda.is_available()
    given = _Given(load, processor)
    config = GRPOConfig(
        output_dir=str(model.parent / "trl"),
        max_steps=steps + 1,
        num_generations=load.group_size,
        per_device_train_batch_size=load.together,
        gradient_accumulation_steps=load.num_groups * load.group_size // load.together,
        max_completion_length=load.lengths[1],
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        adam_beta2=0.95,
        max_grad_norm=1.0,
        beta=0.0,
        loss_type="grpo",
        temperature=1.0,
        gradient_checkpointing=checkpointing,
        bf16=dtype == "bfloat16",
        use_cpu=cpu,
        shuffle_dataset=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        model_init_kwargs={"dtype": dtype},
    )
    trainer = GRPOTrainer(
        model=str(model),
        reward_funcs=given.reward,
        args=config,
        train_dataset=given.dataset(),
        processing_class=processor,
        rollout_func=given.roll_out,
    )
    clock = _callback(torch.device("cpu" if cpu else "cuda"), given)
    trainer.add_callback(clock)
    trainer.train()
    norms = [row["grad_norm"] for row in trainer.state.log_history if "grad_norm" in row]
    return {
        "seconds": clock.seconds,
        "peak_mib": clock.memory.total_mib(),
        "rise_mib": clock.memory.mib(),
        "grad_norm": norms[0],
    }


class _Given:
    """Completions and rewards by the number in a prompt's text."""

    def __init__(self, load: Load, processor: Any) -> None:
        self._questions = questions(load)
        self._prompt_ids = [prompt_ids(question, processor) for question in self._questions]
        self.seconds = 0.0

    def dataset(self) -> Any:
        import datasets

        rows = [
            {"prompt": [{"role": "user", "content": q.text}], "image": picture(q.sample)}
            for q in self._questions
        ]
        return datasets.Dataset.from_list(rows)

    def roll_out(self, prompts: list[Any], _trainer: Any) -> dict[str, Any]:
        """What a sampler would return; its time is not TRL's."""
        start = time.perf_counter()
        found = [int(re.search(r"Scene (\d+)\.", str(p[0]["content"])).group(1)) for p in prompts]  # type: ignore[union-attr]
        seen: dict[int, int] = {}
        members = []
        for index in found:
            members.append((index, seen.get(index, 0)))
            seen[index] = seen.get(index, 0) + 1
        answers = [self._questions[g].completions[i] for g, i in members]
        output = {
            "prompt_ids": [self._prompt_ids[g] for g, _ in members],
            "completion_ids": answers,
            "logprobs": [[0.0] * len(ids) for ids in answers],
            "given": [self._questions[g].rewards[i] for g, i in members],
        }
        self.seconds += time.perf_counter() - start
        return output

    def reward(self, given: list[float], **_: Any) -> list[float]:
        """What `roll_out` brought along."""
        return given


def _callback(device: torch.device, given: _Given) -> Any:
    from transformers import TrainerCallback

    class Clock(TrainerCallback):  # type: ignore[misc]
        """Seconds from the end of one step to the end of the next, sampling left out."""

        def __init__(self) -> None:
            self.seconds: list[float] = []
            self._last: float | None = None

        def on_step_end(self, *_args: Any, **_kwargs: Any) -> None:
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            now = time.perf_counter() - given.seconds
            if self._last is None:
                self.memory = PeakMemory(device)
            else:
                self.seconds.append(now - self._last)
            self._last = time.perf_counter() - given.seconds

    return Clock()
