"""Our side of `benchmarks/trainer.py`: `Preparation` and `PolicyEngine.train_step`."""

import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.flops import causal_pairs, visible_pairs
from benchmarks.memory import PeakMemory
from benchmarks.trainer_load import Load, prompt_ids, questions
from services.schemas.groups import TrainGroup
from services.schemas.rollouts import Completion, RolloutGroup, VersionSpan
from services.settings import Settings
from trainer.algorithms.advantages import group_relative
from trainer.batches.micro_batches import plan_step
from trainer.batches.preparation import Preparation, Prepared, PreparedBatches
from trainer.batches.shares import share_out
from trainer.policy.engine import PolicyEngine, init_process_group
from trainer.types import Outcome, StepBatch

LEARNING_RATE = 1e-6


def run(load: Load, model: Path, steps: int, dtype: str, checkpointing: bool) -> dict[str, Any]:
    """Train on the load; one step first that is not counted.

    Returns:
        Seconds of each step, of its phases, peak memory, and the first step's gradient norm.
    """
    init_process_group(600)
    engine, batch, prepare = start(load, model, dtype, checkpointing)
    clock = Phases(engine.device)
    clock.watch(engine)
    memory, seconds, norms = PeakMemory(engine.device), [], []
    for _ in range(steps):
        begun = clock.now()
        with_tensors = clock.timed("preparation", partial(prepare, batch))()
        output = engine.train_step(with_tensors.mini_batches, LEARNING_RATE)
        seconds.append(clock.now() - begun)
        norms.append(output.grad_norm)
    peak, rise = memory.total_mib(), memory.mib()
    return {
        "seconds": seconds,
        "phases": {name: value / steps for name, value in clock.seconds.items()},
        "peak_mib": peak,
        "rise_mib": rise,
        "grad_norm": norms[0],
        "waits": _waits(engine, batch, prepare, steps),
        "work": _work(engine, batch, _budget(load, batch)),
    }


def start(
    load: Load, model: Path, dtype: str, checkpointing: bool
) -> tuple[PolicyEngine, StepBatch, Callable[[StepBatch], Prepared]]:
    """An engine, a batch with the log-probabilities of the start weights, and how it is laid out.

    The process group is the caller's.
    """
    engine = PolicyEngine(_settings(load, model, dtype, checkpointing), world_size=1)
    batch = _batch(load, engine.processor)
    budget = _budget(load, batch)
    preparation = Preparation(
        [question.sample for question in questions(load)],  # type: ignore[arg-type]
        engine.processor,
        engine.rope_index,
    )
    weights = [
        [
            1 / (len(batch.groups) * load.group_size * len(c.token_ids))
            for c in g.rollout.completions
        ]
        for g in batch.groups
    ]

    def prepare(batch: StepBatch) -> Prepared:
        (part,) = share_out(batch.groups, weights, num_ranks=1, max_tokens=budget)
        return preparation(part)

    # The first pass finds the logprobs of the start weights, as a sampler would have reported them.
    scored = engine.train_step(prepare(batch).mini_batches, 0.0)
    return engine, _with_logprobs(batch, scored.policy_logprobs), prepare


def _waits(
    engine: PolicyEngine, batch: StepBatch, prepare: Callable[[StepBatch], Prepared], steps: int
) -> list[float]:
    """Seconds that a loop waits for each batch which is laid out beside the step before."""
    batches = PreparedBatches(lambda _: batch, prepare, ahead=True, num_steps=steps + 1)
    waits = []
    for step in range(steps + 1):
        batches.take_with_advantages(step)
        start = time.perf_counter()
        prepared = batches.prepared()
        waits.append(time.perf_counter() - start)
        engine.train_step(prepared.mini_batches, LEARNING_RATE)
    return waits[1:]


class Phases:
    """Seconds of the parts of a step."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.seconds: dict[str, float] = defaultdict(float)

    def now(self) -> float:
        """Seconds, once the device has done what it was given."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def timed(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, its time added to a phase."""

        def measured(*args: Any, **kwargs: Any) -> Any:
            start = self.now()
            result = work(*args, **kwargs)
            self.seconds[name] += self.now() - start
            return result

        return measured

    def watch(self, engine: PolicyEngine) -> None:
        """Time the parts of `train_step`."""
        deepspeed, scorer = engine._engine, engine._engine.module
        inner = scorer.model.model
        parts = (
            (inner.visual, "forward", "vision tower, forward"),
            (inner.language_model, "forward", "language model, forward"),
            (scorer.head, "forward", "logprobs, forward"),
            (deepspeed, "backward", "backward"),
            (deepspeed, "step", "optimizer"),
        )
        for owner, method, name in parts:
            setattr(owner, method, self.timed(name, getattr(owner, method)))


def _settings(load: Load, model: Path, dtype: str, checkpointing: bool) -> Settings:
    width, height = load.image
    return Settings.model_validate(
        {
            "model": {
                "path": str(model),
                "dtype": dtype,
                "min_pixels": width * height // 2,
                "max_pixels": 2 * width * height,
            },
            "data": {"train": "none"},
            "trainer": {
                "group_size": load.group_size,
                "groups_per_step": load.num_groups,
                "gradient_checkpointing": checkpointing,
                "learning_rate": LEARNING_RATE,
            },
            # At stage 0 gradients would be summed in bfloat16.
            "deepspeed": {"zero_stage": 2 if dtype == "bfloat16" else 0},
        }
    )


def _batch(load: Load, processor: Any) -> StepBatch:
    groups = []
    for index, question in enumerate(questions(load)):
        advantages = group_relative(torch.tensor([question.rewards]), "group")
        completions = [
            Completion(
                text="",
                token_ids=ids,
                rollout_logprobs=[0.0] * len(ids),
                finish_reason="stop",
                policy_versions=[VersionSpan(policy_version=0, start=0, end=len(ids))],
            )
            for ids in question.completions
        ]
        rollout = RolloutGroup(
            group_id=f"g{index}",
            attempt=0,
            incarnation=1,
            server_id="s",
            prompt_token_ids=prompt_ids(question, processor),
            completions=completions,
            sampling_s=0,
        )
        groups.append(
            TrainGroup(
                position=index,
                index=index,
                rollout=rollout,
                rewards=[],
                advantages=advantages[0].tolist(),
            )
        )
    return StepBatch(groups=groups, outcome=Outcome())


def _with_logprobs(batch: StepBatch, logprobs: list[list[float]]) -> StepBatch:
    found = iter(logprobs)
    groups = []
    for group in batch.groups:
        completions = [
            c.model_copy(update={"rollout_logprobs": next(found)})
            for c in group.rollout.completions
        ]
        rollout = group.rollout.model_copy(update={"completions": completions})
        groups.append(group.model_copy(update={"rollout": rollout}))
    return batch.model_copy(update={"groups": groups})


def _budget(load: Load, batch: StepBatch) -> int:
    """Tokens of a micro batch of `load.together` padded sequences of one completion."""
    prompt = max(len(g.rollout.prompt_token_ids) for g in batch.groups)
    answer = max(len(c.token_ids) for g in batch.groups for c in g.rollout.completions)
    return load.together * (prompt + answer)


def _work(engine: PolicyEngine, batch: StepBatch, budget: int) -> dict[str, float]:
    """What the model FLOP/s are counted from."""
    (plan,) = plan_step(batch.groups, num_ranks=1, max_tokens=budget)
    rows = [row for rows in plan.micro_batches for row in rows]
    model = engine._engine.module.model
    text = model.config.get_text_config()
    count = {
        "vision": sum(p.numel() for p in model.model.visual.parameters()),
        "layers": sum(p.numel() for p in model.model.language_model.layers.parameters()),
        "head": model.lm_head.weight.numel(),
    }
    width = text.num_hidden_layers * text.hidden_size
    lengths = [
        (len(g.rollout.prompt_token_ids), [len(c.token_ids) for c in g.rollout.completions])
        for g in batch.groups
    ]
    image = engine.processor.image_token_id
    images = sum(g.rollout.prompt_token_ids.count(image) for g in batch.groups)
    answers = sum(n for _, of_group in lengths for n in of_group)
    return {
        **count,
        "image_tokens": images,
        "model_tokens": sum(row.length for row in rows),
        "scored_tokens": answers,
        "attention": width * sum(visible_pairs(*group) for group in lengths),
        # As separate sequences, each with its own prompt and image.
        "plain_image_tokens": images * len(lengths[0][1]),
        "plain_tokens": sum(prompt * len(ns) for prompt, ns in lengths) + answers,
        "plain_attention": width * sum(causal_pairs(p + n) for p, ns in lengths for n in ns),
    }
