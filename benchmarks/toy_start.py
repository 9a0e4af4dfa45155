"""How good a toy model is, by plain transformers sampling and the reward service's own scoring.

python benchmarks/toy_start.py assets/toy-start --num-scenes 64
python benchmarks/toy_start.py assets/toy-start-2 --level 2
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from reward_service.scoring import make_scorer, reference_columns
from scene_data.templates import prompt_messages
from scene_data.toy.layouts import Level
from scene_data.toy.scenes import SIDE, render, toy_scene
from scene_graph.boxes import RELATIVE_1000
from scene_graph.graph import SceneGraph
from scene_graph.matching import compare
from scene_graph.parsing import parse_completion
from services.schemas.rewards import (
    ReferenceGraph,
    ReferenceObject,
    ReferenceRelationship,
    RewardGroup,
)

SEED = 7
BOX_SPACE = RELATIVE_1000
MAX_TOKENS = 144
PLACEHOLDERS = ("<|image_pad|>", "<|video_pad|>")
COLUMNS = (
    "scenes",
    "sampling",
    "parsed",
    "IoU of matched boxes",
    "right names",
    "relation recall",
    "`r1-soft` (of 10)",
)


@dataclass(frozen=True, slots=True)
class ToyModel:
    """A loaded model with its processor."""

    model: Any
    processor: Any

    def complete(self, scenes: Sequence[SceneGraph], *, n: int, temperature: float) -> list[str]:
        """`n` completions of each scene, scene by scene; temperature 0 is greedy."""
        messages = [m.model_dump() for m in prompt_messages("toy", BOX_SPACE)]
        prompt = self.processor.apply_chat_template(messages, add_generation_prompt=True)
        images = [Image.open(BytesIO(render(scene))) for scene in scenes]
        inputs = self.processor(text=[prompt] * len(scenes), images=images, return_tensors="pt")
        tokenizer = self.processor.tokenizer
        sampling: dict[str, Any] = {"do_sample": False}
        if temperature > 0:
            sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        with torch.no_grad():
            output = self.model.generate(
                **inputs,
                **sampling,
                num_return_sequences=n,
                max_new_tokens=MAX_TOKENS,
                suppress_tokens=tokenizer.convert_tokens_to_ids(list(PLACEHOLDERS)),
            )
        completions = output[:, inputs["input_ids"].shape[1] :]
        texts: list[str] = tokenizer.batch_decode(completions, skip_special_tokens=True)
        return texts


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--num-scenes", type=int, default=64)
    parser.add_argument("--level", type=int, default=1, choices=(1, 2))
    arguments = parser.parse_args()
    model = ToyModel(
        AutoModelForImageTextToText.from_pretrained(arguments.model).eval(),
        AutoProcessor.from_pretrained(arguments.model),
    )
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for row in table(model, arguments.num_scenes, arguments.level):
        print(f"| {' | '.join(row)} |")


def table(model: ToyModel, num_scenes: int, level: Level) -> Iterator[list[str]]:
    """One row for each split and way of sampling."""
    for heldout in (False, True):
        scenes = [toy_scene(SEED, i, heldout=heldout, level=level) for i in range(num_scenes)]
        for temperature, n in ((0.0, 1), (1.0, 4)):
            torch.manual_seed(SEED)
            texts = model.complete(scenes, n=n, temperature=temperature)
            groups = [texts[i * n : (i + 1) * n] for i in range(num_scenes)]
            yield [
                "held-out pairs" if heldout else "training pairs",
                "temperature 1" if temperature else "greedy",
                *measure(scenes, groups),
            ]


def measure(scenes: Sequence[SceneGraph], groups: Sequence[Sequence[str]]) -> list[str]:
    """Means over all completions; what does not parse counts 0, but for the IoU."""
    soft, hard = make_scorer("r1-soft"), make_scorer("r1-hard")
    rewards, recall, ious = [], [], []
    for scene, texts in zip(scenes, groups, strict=True):
        group = _reward_group(scene, list(texts))
        rewards += soft.score([group])[0].rewards
        recall += [r.breakdown["edge_hard"] for r in hard.score([group])[0].rewards]
        ious += [_mean_iou(group, text) for text in texts]
    return [
        f"{np.mean([r.status == 'ok' for r in rewards]):.1%}",
        f"{np.nanmean(ious):.2f}",
        f"{np.mean([r.breakdown['node_category'] for r in rewards]):.1%}",
        f"{np.mean(recall):.1%}",
        f"{np.mean([r.total for r in rewards]):.2f}",
    ]


def _reward_group(scene: SceneGraph, completions: list[str]) -> RewardGroup:
    return RewardGroup(
        group_id="scene",
        image_size=(SIDE, SIDE),
        box_space=str(BOX_SPACE),
        reference=ReferenceGraph(
            objects=[ReferenceObject(id=o.id, bbox=o.bbox) for o in scene.objects],
            relationships=[
                ReferenceRelationship(subject=r.subject, predicate=r.predicate, object=r.object)
                for r in scene.relationships
            ],
        ),
        completions=completions,
    )


def _mean_iou(group: RewardGroup, text: str) -> float:
    """Mean IoU of the boxes that the matching pairs; NaN where nothing was predicted."""
    predicted = parse_completion(text, BOX_SPACE).columns
    reference, _ = reference_columns(group)
    pairs = compare([predicted], [reference], np.zeros(1, dtype=np.int64)).pairs
    if pairs is None or not len(pairs.matched):
        return float("nan")
    return float(pairs.iou[pairs.matched].mean())


if __name__ == "__main__":
    main()
