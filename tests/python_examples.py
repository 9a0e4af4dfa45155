"""The folder in which the examples of docstrings and of docs/python.md run, and how they run."""

import asyncio
import doctest
import json
from collections.abc import Mapping
from pathlib import Path

import sgg_rl
from scene_data.toy.scenes import make_toy
from services.run_folder import RunFolder
from services.settings import Settings, dump_settings

ROLLOUT, REWARD = "http://127.0.0.1:8200", "http://127.0.0.1:8100"
"""Where examples say that servers are."""
REWARDS = (1.5, 2.25)


def make_example_folder(folder: Path) -> None:
    """Toy scenes, a prediction for each that is right, a picture, and a run of two steps."""
    make_toy(folder / "toy", num_train=8, num_heldout=8)
    lines = []
    for sample in sgg_rl.load_dataset(folder / "toy/heldout.parquet"):
        objects = [{"id": item.id, "bbox": item.bbox} for item in sample.graph.objects]
        triplets = [
            {"subject": r.subject, "predicate": r.predicate, "object": r.object}
            for r in sample.graph.relationships
        ]
        line = {"image_id": sample.image_id, "width": sample.width, "height": sample.height}
        lines.append(json.dumps({**line, "objects": objects, "relationships": triplets}))
        (folder / "cat.png").write_bytes(sample.image_bytes)
    (folder / "mine.jsonl").write_text("\n".join(lines))
    make_run(folder / "runs/demo")


def make_run(folder: Path) -> Settings:
    """A run's folder as a trainer leaves it that was killed after its second step."""
    settings = Settings.model_validate(
        {
            "run": {"name": folder.name, "root": str(folder.parent)},
            "model": {"path": "none"},
            "data": {"train": "toy/train.parquet"},
            "trainer": {"num_steps": 80},
        }
    )
    folder.mkdir(parents=True)
    run = RunFolder(folder)
    run.config.write_text(dump_settings(settings))
    rows = ({"step": i, "num_steps": 80, "reward_mean": mean} for i, mean in enumerate(REWARDS))
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return settings


def failures(text: str, name: str, urls: Mapping[str, str] | None = None) -> tuple[int, str]:
    """Run the examples of a text in this folder.

    Args:
        text: With `>>>` lines.
        name: For messages.
        urls: What stands for the addresses in it.

    Returns:
        How many examples ran, and what was wrong.
    """
    for said, real in (urls or {}).items():
        text = text.replace(said, real)
    known = {"sgg_rl": sgg_rl, "asyncio": asyncio}
    examples = doctest.DocTestParser().get_doctest(text, known, name, None, 0)
    found: list[str] = []
    doctest.DocTestRunner(verbose=False, optionflags=doctest.NORMALIZE_WHITESPACE).run(
        examples, out=found.append
    )
    return len(examples.examples), "".join(found)
