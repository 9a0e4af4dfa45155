"""The reward function inside the installed TRL: real generation, real optimizer steps."""

import json
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from datasets import Dataset, Image
from trl import GRPOConfig, GRPOTrainer

from reward_service.scoring import make_scorer
from reward_service.trl.reward import SceneGraphReward, scene_graph_reward
from scene_data.toy.scenes import SIDE, render, toy_scene
from services.schemas.rewards import RewardGroup

ROOT = Path(__file__).parents[2]
NUM_SCENES, NUM_GENERATIONS, NUM_STEPS = 4, 2, 2


def scenes(*, as_json: bool) -> list[dict[str, Any]]:
    """Rows as R1-SGG's dataset has them, with or without its lists as JSON."""
    rows = []
    for index in range(NUM_SCENES):
        graph = toy_scene(5, index, heldout=False)
        objects = [{"id": o.id, "bbox": list(o.bbox)} for o in graph.objects]
        edges = [
            {"subject": r.subject, "predicate": r.predicate, "object": r.object}
            for r in graph.relationships
        ]
        rows.append(
            {
                "prompt": [{"role": "user", "content": "Scene graph:"}],
                "image": {"bytes": render(graph), "path": None},
                "objects": json.dumps(objects) if as_json else objects,
                "relationships": json.dumps(edges) if as_json else edges,
            }
        )
    return rows


class Witness:
    """A second reward function, without weight, that keeps what TRL hands to reward functions."""

    __name__ = "witness"

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def __call__(self, **passed: Any) -> list[float]:
        self.calls.append(passed)
        return [0.0] * len(passed["completions"])


def config(folder: Path, **changes: Any) -> GRPOConfig:
    settings = {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": False,
        "report_to": [],
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "max_steps": NUM_STEPS,
        "per_device_train_batch_size": 2 * NUM_GENERATIONS,
        "num_generations": NUM_GENERATIONS,
        "max_completion_length": 120,
        "gradient_checkpointing": False,
        "reward_weights": [1.0, 0.0],
        "seed": 3,
    }
    return GRPOConfig(**(settings | changes))


def independent_totals(call: dict[str, Any]) -> list[float]:
    """What the scorer gives for each completion that TRL made, one group for each."""
    totals = []
    for place, conversation in enumerate(call["completions"]):
        lists = {name: call[name][place] for name in ("objects", "relationships")}
        group = RewardGroup.model_validate(
            {
                "group_id": "g",
                "image_size": (SIDE, SIDE),
                "box_space": "relative_1000",
                "reference": {
                    name: json.loads(found) if isinstance(found, str) else found
                    for name, found in lists.items()
                },
                "completions": [conversation[0]["content"]],
            }
        )
        totals.append(make_scorer("balanced").score([group])[0].rewards[0].total)
    return totals


@pytest.mark.parametrize("as_json", [False, True])
def test_trl_trains_on_what_the_scorer_gives(tmp_path: Path, as_json: bool) -> None:
    witness = Witness()
    trainer = GRPOTrainer(
        model=str(ROOT / "assets/toy-start"),
        reward_funcs=[scene_graph_reward, witness],
        args=config(tmp_path),
        train_dataset=Dataset.from_list(scenes(as_json=as_json)).cast_column("image", Image()),
    )
    trainer.train()
    logs = [row for row in trainer.state.log_history if "reward" in row]
    assert len(logs) == len(witness.calls) == NUM_STEPS
    for log, call in zip(logs, witness.calls, strict=True):
        expected = independent_totals(call)
        assert len(set(expected)) > 1  # a constant would train nothing, and pass
        assert log["reward"] == pytest.approx(fmean(expected), abs=1e-5)
        assert log["rewards/scene_graph_balanced/mean"] == pytest.approx(log["reward"])
        assert log["grad_norm"] > 0
        terms = make_scorer("balanced").weights
        from_terms = sum(log[f"scene_graph_balanced/{term}"] * terms[term] for term in terms)
        assert from_terms == pytest.approx(log["reward"], abs=1e-5)


def test_the_table_of_completions_has_their_statuses(tmp_path: Path) -> None:
    args = config(tmp_path, max_steps=1, max_completion_length=8, log_completions=True)
    trainer = GRPOTrainer(
        model=str(ROOT / "assets/toy-start"),
        reward_funcs=[scene_graph_reward, Witness()],
        args=args,
        train_dataset=Dataset.from_list(scenes(as_json=False)).cast_column("image", Image()),
    )
    trainer.train()
    (file,) = (tmp_path / "completions").glob("*.parquet")
    table = Dataset.from_parquet(str(file))
    assert table["scene_graph_balanced_status"] == ["invalid_json"] * 2 * NUM_GENERATIONS
    assert table["scene_graph_balanced"] == [0.0] * 2 * NUM_GENERATIONS


def test_terms_can_be_reward_functions_of_their_own(tmp_path: Path) -> None:
    trainer = GRPOTrainer(
        model=str(ROOT / "assets/toy-start"),
        reward_funcs=[SceneGraphReward(term="node_box"), SceneGraphReward(term="triplet_f1")],
        args=config(tmp_path, max_steps=1, reward_weights=[1.0, 5.0]),
        train_dataset=Dataset.from_list(scenes(as_json=False)).cast_column("image", Image()),
    )
    trainer.train()
    log = next(row for row in trainer.state.log_history if "reward" in row)
    box, triplets = (log[f"rewards/scene_graph_{t}/mean"] for t in ("node_box", "triplet_f1"))
    assert 0 < box < 1
    assert log["reward"] == pytest.approx(box + 5 * triplets, abs=1e-5)
