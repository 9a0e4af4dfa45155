"""A run's folder as the real writer leaves it: groups about toy scenes, sampled by a seed."""

import hashlib
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reward_service.scoring import make_scorer
from scene_data.dataset import Sample, open_dataset
from scene_data.messages import reference_graph
from scene_data.templates import answer_text
from scene_data.toy.scenes import make_toy
from scene_graph.boxes import RELATIVE_1000
from scene_graph.graph import Relationship, SceneGraph, SceneObject
from scene_graph.notations.answer import NotationName
from scene_graph.notations.notation import NOTATIONS
from services.bundled import TOY_MODELS
from services.run_folder.records import record_lines
from services.schemas.common import ImageRef, Sampling
from services.schemas.groups import GroupReference, TrainGroup
from services.schemas.prompts import PromptGroup
from services.schemas.rewards import RewardGroup
from services.schemas.rollouts import Completion, RolloutGroup, VersionSpan
from services.settings import Settings, dump_settings
from trainer.records.files import RunRecords
from trainer.types import UnusedGroup

SIZE = 6
"""Completions of a group"""
QUESTION = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Graph:"}]}


def write_run(
    folder: Path,
    *,
    num_steps: int = 3,
    num_groups: int = 4,
    extra: Sequence[str] = (),
    **more: Any,
) -> Settings:
    """A run named `toys`: `num_groups` a step, and in the last step a stale and a dead one.

    Answers come closer to their references with each step. Every epoch is a step.

    Args:
        folder: The run's folder and its dataset are made in it.
        num_steps: Steps.
        num_groups: Pictures, each in every step.
        extra: Answers of one more group of the last step, `toys-extra`.
        more: Sections of the settings.
    """
    make_toy(folder / "data", num_train=num_groups + 2, num_heldout=8)
    samples = list(open_dataset(folder / "data/train.parquet"))
    settings = Settings.model_validate(
        {
            "run": {"name": "toys", "root": str(folder / "runs")},
            "model": {"path": TOY_MODELS[0], "box_space": "relative_1000"},
            "data": {
                "train": str(folder / "data/train.parquet"),
                "heldout": str(folder / "data/heldout.parquet"),
                "template": "toy",
                **more.pop("data", {}),
            },
            **more,
        }
    )
    settings.run.folder.mkdir(parents=True, exist_ok=True)
    settings.run.files.config.write_text(dump_settings(settings))
    records = RunRecords(settings, 0)
    records.cut_to(0)
    for step in range(num_steps):
        rate = 0.9 * (1 - step / num_steps)
        groups = [
            group(
                samples[row],
                row,
                [_spoilt(samples[row], step, n, rate, settings.data.notation) for n in range(SIZE)],
                step,
                rubric=settings.reward.rubric,
                notation=settings.data.notation,
            )
            for row in range(num_groups)
        ]
        last = step == num_steps - 1
        if last and extra:
            groups.append(group(samples[0], 0, extra, step, name="toys-extra"))
        records.rollouts.write(
            step, groups, [_trainer(g, n) for g in groups for n in range(len(g.rewards))]
        )
        records.rollouts.finish(step, _unused(samples, num_groups) if last else [])
        totals = [reward.total for each in groups for reward in each.rewards]
        row = {"step": step, "num_steps": num_steps, "policy_version": step, "time": 1e9 + step}
        records.step({**row, "reward_mean": sum(totals) / len(totals)}, {"step": step})
    records.close()
    return settings


def as_an_earlier_release(run: Path) -> None:
    """Make the groups of a run plain lines, as releases did before they compressed them."""
    index = run / "rollouts/index.rank0.jsonl"
    lines = [json.loads(line) for line in index.read_text().splitlines()]
    for file in (run / "rollouts").glob("step-*.jsonl.gz"):
        plain, records = file.with_suffix(""), record_lines(file)
        of_file = sorted(
            (line for line in lines if line["file"] == file.name), key=lambda line: line["offset"]
        )
        offset = 0
        for line, record in zip(of_file, records, strict=True):
            line |= {"file": plain.name, "offset": offset, "length": len(record)}
            offset += len(record) + 1
        plain.write_bytes(b"".join(record + b"\n" for record in records))
        file.unlink()
    index.write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines))


def _group(sample: Sample, row: int, step: int, rate: float) -> TrainGroup:
    texts = [_spoilt(sample, step, number, rate) for number in range(SIZE)]
    return group(sample, row, texts, step)


def group(
    sample: Sample,
    row: int,
    texts: Sequence[str],
    step: int,
    name: str = "",
    rubric: str | dict[str, Any] = "balanced",
    notation: NotationName = "json",
) -> TrainGroup:
    """A group of answers to a toy scene, scored."""
    name = name or f"toys-e{step}-r{row}"
    reference = reference_graph(sample)
    size = (sample.width, sample.height)
    asked = RewardGroup(
        group_id=name,
        image_size=size,
        box_space="relative_1000",
        reference=reference,
        completions=list(texts),
        notation=notation,
    )
    rewards = make_scorer(rubric).score([asked])[0].rewards
    mean = sum(reward.total for reward in rewards) / len(rewards)
    return TrainGroup(
        position=1000 * step + row,
        index=row,
        prompt=PromptGroup(
            group_id=name,
            incarnation=1,
            epoch=step,
            index=row,
            messages=[QUESTION],
            images=[_image_ref(sample.image_bytes)],
            sampling=Sampling(n=len(texts), max_tokens=400),
        ),
        rollout=RolloutGroup(
            group_id=name,
            attempt=0,
            incarnation=1,
            server_id="s",
            prompt_token_ids=[1],
            completions=[_completion(text, step) for text in texts],
            sampling_s=0.5,
        ),
        rewards=rewards,
        advantages=[reward.total - mean for reward in rewards],
        reference=GroupReference(
            image_size=size, box_space="relative_1000", graph=reference, notation=notation
        ),
    )


def _image_ref(data: bytes) -> ImageRef:
    return ImageRef(sha256=hashlib.sha256(data).hexdigest(), num_bytes=len(data))


def _completion(text: str, version: int) -> Completion:
    from tokenizers import Tokenizer

    from services.bundled import toy_start

    ids = Tokenizer.from_file(str(toy_start() / "tokenizer.json")).encode(text).ids or [1]
    rng = random.Random(text)
    middle = len(ids) // 2
    spans = [(version, 0, middle), (version + 1, middle, len(ids))]
    return Completion(
        text=text,
        token_ids=ids,
        rollout_logprobs=[-(rng.random() ** 3) * 3 for _ in ids],
        finish_reason="length" if not text.endswith(">") else "stop",
        policy_versions=[
            VersionSpan(policy_version=v, start=start, end=end) for v, start, end in spans
        ],
    )


def _trainer(made: TrainGroup, number: int) -> list[float]:
    """The trainer's log-probabilities: mostly the sampler's, some far from them."""
    sampled = made.rollout.completions[number].rollout_logprobs
    rng = random.Random(number)
    return [value + rng.choice((0.0, 0.0, 0.0, 0.01, -0.05, 0.15, 0.5, -0.6)) for value in sampled]


def _unused(samples: Sequence[Sample], num_groups: int) -> list[UnusedGroup]:
    row = num_groups
    stale = group(samples[row], row, [_spoilt(samples[row], 0, 0, 0.5)] * 2, 0)
    unscored = stale.model_copy(update={"rewards": [], "advantages": []})
    names: dict[str, Any] = {"group_id": stale.rollout.group_id, "position": 9000, "index": row}
    return [
        UnusedGroup(state="stale", group=unscored, **names),
        UnusedGroup(
            state="dead",
            position=9001,
            group_id="toys-dead",
            index=row + 1,
            group=None,
            reason="the image cannot be read",
        ),
    ]


def _spoilt(
    sample: Sample, step: int, number: int, rate: float, notation: NotationName = "json"
) -> str:
    """The right answer, of which each part is wrong at `rate`."""
    rng = random.Random(f"{sample.image_id} {step} {number}")
    text = answer_text(sample.graph, RELATIVE_1000, width=sample.width, height=sample.height)
    value = json.loads(text.removeprefix("<answer>").removesuffix("</answer>"))
    if rng.random() < rate / 4:
        return text[: rng.randrange(20, len(text) - 20)]
    for item in value["objects"]:
        if rng.random() < rate:
            shift = rng.choice((120, 420))
            item["bbox"] = [min(side + shift, 1000) for side in item["bbox"][:2]] + [1000, 1000]
    for item in value["relationships"]:
        if rng.random() < rate:
            item["predicate"] = rng.choice(["near", "above", item["predicate"]])
    if rng.random() < rate:
        value["objects"].append({"id": "blue ghost.1", "bbox": [30, 40, 300, 360]})
        value["objects"].append({"id": "bad.1", "bbox": [9, 9, 9, 9]})
    if notation == "json":
        return f"<answer>{json.dumps(value)}</answer>"
    objects = [SceneObject(id=o["id"], bbox=tuple(o["bbox"])) for o in value["objects"]]
    edges = [Relationship(**edge) for edge in value["relationships"]]
    graph = SceneGraph(objects=tuple(objects), relationships=tuple(edges))
    return f"<answer>\n{NOTATIONS[notation].write(graph, 'sgg')}\n</answer>"
