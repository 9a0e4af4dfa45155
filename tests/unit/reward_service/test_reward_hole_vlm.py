"""The figures of `benchmarks/reward_hole_vlm.py`."""

import pytest

from benchmarks.reward_hole_vlm import flood, pooled
from reward_service.scoring import make_scorer
from scene_data.dataset import Sample
from scene_data.templates import answer_text
from scene_data.toy.layouts import PREDICATES
from scene_data.toy.scenes import SIDE, toy_scene
from scene_graph.boxes import RELATIVE_1000
from services.schemas.rewards import RewardGroup
from tests.train_groups import completion, train_group
from trainer.collection.group_pool import GroupSource

SCENE = toy_scene(3, 1, heldout=False)


def test_triplets_are_counted_over_all_answers_of_a_step() -> None:
    flooded = flood(SCENE)
    texts = [answer_text(one, RELATIVE_1000, width=SIDE, height=SIDE) for one in (SCENE, flooded)]
    sample = Sample(image_id="a", image_bytes=b"", width=SIDE, height=SIDE, graph=SCENE)
    reference = GroupSource(sample=sample, box_space=RELATIVE_1000, num_image_tokens=None).reference
    asked = RewardGroup(
        group_id="g",
        image_size=reference.image_size,
        box_space=reference.box_space,
        reference=reference.graph,
        completions=texts,
    )
    rewards = make_scorer("r1-soft").score([asked])[0].rewards
    answers = [completion([1]).model_copy(update={"text": text}) for text in texts]
    group = train_group([1], answers).model_copy(
        update={"rewards": rewards, "reference": reference}
    )
    num_right, num_flooded = len(SCENE.relationships), len(flooded.relationships)
    written = num_right + num_flooded
    step = pooled([group])
    assert num_flooded == 2 * len(PREDICATES)
    assert step.written == pytest.approx(written / (2 * num_right))
    assert step.precision == pytest.approx(2 * num_right / written)
    assert step.f1 == pytest.approx(4 * num_right / (written + 2 * num_right))
    assert step.reward == pytest.approx(sum(one.total for one in rewards) / 20)
