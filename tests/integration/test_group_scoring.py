"""Sampled groups are asked for and scored by the run's task."""

from pathlib import Path

import pytest

from scene_data.dataset import open_dataset
from scene_data.templates import answer_text
from scene_data.toy import SIDE, make_toy
from scene_graph.cleaning import Task
from services.images import ImageStore
from services.schemas.rollouts import Completion, RolloutGroup
from services.settings import Settings
from tests.reward_process import GOLDEN, TOKEN, running
from trainer.collection.group_scoring import GroupScoring
from trainer.collection.prompts import PromptSource

GROUP = RolloutGroup.model_validate_json((GOLDEN / "rollout_group.json").read_text())
TERMS = {
    "sgg": {"format", "node_category", "node_box", "object_precision", "triplet_f1"},
    "det": {"format", "node_category", "node_box", "object_precision"},
    "cls": {"format", "triplet_f1"},
}


async def score(settings: Settings, task: Task) -> None:
    """The right answer earns the most that the task's terms can pay."""
    settings = settings.model_copy(update={"data": settings.data.model_copy(update={"task": task})})
    dataset = open_dataset(settings.data.train, task=task)
    prompts = PromptSource(settings, dataset, ImageStore(settings.images_folder), 1, [7])
    prompt = prompts.prompt(0, 0)
    asked = prompt.model_dump()["messages"][0]["content"][1]["text"]
    assert asked == {"sgg": "Scene graph:", "det": "Objects:", "cls": "Relationships:"}[task]
    right = answer_text(
        dataset[prompt.index].graph, "relative_1000", width=SIDE, height=SIDE, task=task
    )
    completions = [
        Completion(
            text=text,
            token_ids=[1],
            rollout_logprobs=[0.0],
            finish_reason="stop",
            policy_versions=[],
        )
        for text in (right, "")
    ]
    group = GROUP.model_copy(update={"group_id": prompt.group_id, "completions": completions})
    scoring = GroupScoring(settings, prompts)
    (rewards,) = await scoring.score([(group, prompt.index)])
    await scoring.aclose()
    assert not isinstance(rewards, str)
    best, worst = rewards
    assert set(best.breakdown) == TERMS[task]
    assert best.breakdown["format"] == 1
    assert min(best.breakdown.values()) > 0.99
    assert worst.total == 0


async def test_each_task_is_asked_for_and_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_toy(tmp_path / "toy", num_train=4, num_heldout=1)
    monkeypatch.setenv("SGG_DATA_TOKEN", TOKEN)
    with running(tmp_path / "log") as (url, _):
        settings = Settings.model_validate(
            {
                "run": {"root": str(tmp_path)},
                "model": {"path": "none", "box_space": "relative_1000"},
                "data": {"train": str(tmp_path / "toy/train.parquet"), "template": "toy"},
                "reward": {"url": url},
            }
        )
        for task in ("sgg", "det", "cls"):
            await score(settings, task)
