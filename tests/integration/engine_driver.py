"""Trains the tiny model on fixed batches, once for each case: one rank of the test's torchrun.

    torchrun --nproc-per-node 2 tests/integration/engine_driver.py FOLDER CASE...

Writes `FOLDER/{case}-{num_ranks}.json` with each step's loss and gradient norm, and
`.safetensors` with what the engine exports at the end.
"""

import gc
import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from scene_data.templates import prompt_messages
from scene_data.toy import render, toy_scene
from services.schemas.rollouts import Completion, RolloutGroup, VersionSpan
from services.settings import Settings
from trainer.algorithms.weighting import completion_weights
from trainer.batch import MicroBatch, micro_batches
from trainer.engine import PolicyEngine, init_process_group
from trainer.ranks import Ranks
from trainer.types import TrainGroup

STEPS = 3
NUM_GROUPS, GROUP_SIZE = 4, 3
RATE = 1e-3
CASES: dict[str, dict[str, dict[str, Any]]] = {
    "zero0": {"deepspeed": {"zero_stage": 0}},
    "zero1": {"deepspeed": {"zero_stage": 1}},
    "zero2": {"deepspeed": {"zero_stage": 2}},
    "zero3": {"deepspeed": {"zero_stage": 3, "export_bucket_gib": 1e-3}},
    "zero1-offload": {"deepspeed": {"zero_stage": 1, "offload_optimizer": True}},
    "zero2-offload": {"deepspeed": {"zero_stage": 2, "offload_optimizer": True}},
    "zero3-offload": {
        "deepspeed": {"zero_stage": 3, "offload_optimizer": True, "offload_parameters": True}
    },
    "zero3-recompute": {
        "deepspeed": {"zero_stage": 3},
        "trainer": {"gradient_checkpointing": True},
    },
    "zero0-frozen": {
        "deepspeed": {"zero_stage": 0},
        "trainer": {"freeze_vision_tower": True, "freeze_language_model": True},
    },
    "zero3-frozen": {
        "deepspeed": {"zero_stage": 3},
        "trainer": {"freeze_vision_tower": True, "freeze_language_model": True},
    },
    "zero0-reference": {"deepspeed": {"zero_stage": 0}, "algorithm": {"beta": 5.0}},
    "zero3-reference": {"deepspeed": {"zero_stage": 3}, "algorithm": {"beta": 5.0}},
    "zero0-lora": {
        "deepspeed": {"zero_stage": 0},
        "lora": {"rank": 4},
        "algorithm": {"beta": 5.0},
    },
    "zero2-lora": {
        "deepspeed": {"zero_stage": 2},
        "lora": {"rank": 4},
        "algorithm": {"beta": 5.0},
        "trainer": {"gradient_checkpointing": True},
    },
    "zero3-lora": {
        "deepspeed": {"zero_stage": 3},
        "lora": {"rank": 4},
        "algorithm": {"beta": 5.0},
        "trainer": {"gradient_checkpointing": True},
    },
    "zero0-bf16": {"deepspeed": {"zero_stage": 0}, "model": {"dtype": "bfloat16"}},
    "zero1-bf16": {"deepspeed": {"zero_stage": 1}, "model": {"dtype": "bfloat16"}},
    "zero2-bf16": {"deepspeed": {"zero_stage": 2}, "model": {"dtype": "bfloat16"}},
    "zero2-offload-bf16": {
        "deepspeed": {"zero_stage": 2, "offload_optimizer": True},
        "model": {"dtype": "bfloat16"},
    },
    "zero3-bf16": {"deepspeed": {"zero_stage": 3}, "model": {"dtype": "bfloat16"}},
}


def settings_of(case: str, folder: Path) -> Settings:
    sections = CASES[case]
    model = {"path": str(folder / "model"), "min_pixels": 12544, "max_pixels": 12544}
    lora = "lora" in sections
    return Settings.model_validate(
        {
            **sections,
            "model": {"dtype": "float32", **model, **sections.get("model", {})},
            "data": {"train": "unused"},
            "trainer": {
                "groups_per_step": NUM_GROUPS,
                "group_size": GROUP_SIZE,
                "max_grad_norm": 0.05,  # small enough to clip, as the norms show
                **sections.get("trainer", {}),
            },
            "weights": {"transport": "lora" if lora else "shm"},
        }
    )


def batches_of(step: int, rank: int, size: int, engine: PolicyEngine) -> list[MicroBatch]:
    """A rank's micro batches, of up to two completions; the same groups whatever the ranks."""
    picked = torch.Generator().manual_seed(step)
    groups = [_group(index, picked, engine) for index in range(NUM_GROUPS)]
    lengths = [len(c.token_ids) for g in groups for c in g.rollout.completions]
    flat = completion_weights("grpo", lengths, max_tokens=64)
    weights = [flat[i : i + GROUP_SIZE] for i in range(0, len(flat), GROUP_SIZE)]
    return micro_batches(
        groups[rank::size],
        [_image(group.index) for group in groups[rank::size]],
        weights[rank::size],
        engine.processor,
        max_tokens=120,
        image_token_id=engine.image_token_id,
    )


def _image(index: int) -> bytes:
    return render(toy_scene(0, index, heldout=False))


def _group(index: int, picked: torch.Generator, engine: PolicyEngine) -> TrainGroup:
    processor = engine.processor
    messages = [m.model_dump() for m in prompt_messages("toy", "relative_1000")]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    pads = 112 * 112 // (processor.image_processor.patch_size * 2) ** 2
    text = text.replace("<|image_pad|>", "<|image_pad|>" * pads)
    return TrainGroup(
        position=index,
        index=index,
        rollout=RolloutGroup(
            group_id=f"g{index}",
            attempt=0,
            incarnation=1,
            server_id="s",
            prompt_token_ids=processor.tokenizer(text)["input_ids"],
            completions=[_completion(picked) for _ in range(GROUP_SIZE)],
            sampling_s=0,
        ),
        rewards=[],
        advantages=torch.randn(GROUP_SIZE, generator=picked).tolist(),
    )


def _completion(picked: torch.Generator) -> Completion:
    length = int(torch.randint(5, 30, (), generator=picked))
    noise = 0.1 * torch.randn(length, generator=picked)
    return Completion(
        text="",
        token_ids=torch.randint(20, 500, (length,), generator=picked).tolist(),
        rollout_logprobs=(-6.2 + noise).tolist(),
        finish_reason="stop",
        policy_versions=[VersionSpan(policy_version=0, start=0, end=length)],
    )


def train(engine: PolicyEngine, ranks: Ranks, steps: range) -> list[dict[str, float]]:
    rows = []
    for step in steps:
        batches = batches_of(step, ranks.rank, ranks.size, engine)
        assert len(batches) >= 3
        output = engine.train_step(batches, RATE)
        rows.append(ranks.combine(output.stats) | {"grad_norm": output.grad_norm})
    return rows


def exported(engine: PolicyEngine) -> dict[str, Tensor]:
    return dict(engine.weights())


def run(case: str, folder: Path, ranks: Ranks) -> None:
    engine = PolicyEngine(settings_of(case, folder), ranks.size)
    start = exported(engine)
    rows = train(engine, ranks, range(STEPS))
    end = exported(engine)
    engine.save_pretrained(folder / f"{case}-{ranks.size}")
    if ranks.is_main:
        name = folder / f"{case}-{ranks.size}"
        save_file(start, name.with_suffix(".start.safetensors"))
        save_file(end, name.with_suffix(".safetensors"))
        name.with_suffix(".json").write_text(json.dumps(rows))


def main() -> None:
    folder, *cases = sys.argv[1:]
    torch.set_num_threads(1)
    init_process_group(60)
    ranks = Ranks(60)
    for case in cases:
        run(case, Path(folder), ranks)
        gc.collect()


if __name__ == "__main__":
    main()
